#include "runtime/peaks.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "runtime/memory.h"
#include "runtime/thread_pool.h"

namespace aegis {
namespace {

using Clock = std::chrono::steady_clock;

// Runs `work(member)` (units done a call) on every member until the time is up; units a second, best of three
// slices: a slice in which another process took the core says nothing about the machine.
template <class Work>
double rate(int threads, double seconds, const Work& work) {
  ThreadPool pool(threads);
  double best = 0.0;
  for (int slice = 0; slice < 3; ++slice) {
    std::vector<double> units(static_cast<size_t>(threads), 0.0);
    const auto start = Clock::now();
    auto body = [&](int member) {
      const auto deadline = start + std::chrono::duration<double>(seconds / 3);
      do units[static_cast<size_t>(member)] += work(member);
      while (Clock::now() < deadline);
    };
    pool.run(body);
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    double total = 0.0;
    for (double u : units) total += u;
    best = total / elapsed > best ? total / elapsed : best;
  }
  return best;
}

}  // namespace

double measure_int8_peak(const Kernels& kernels, int threads, double seconds) {
  constexpr int64_t kSteps = 20000;
  return rate(threads, seconds, [&](int) { return 2.0 * static_cast<double>(kernels.peak_int8(kSteps) * kSteps); });
}

double measure_read_bandwidth(int threads, int megabytes, double seconds) {
  const size_t bytes = static_cast<size_t>(megabytes) << 20;
  std::vector<AlignedBytes> buffers;
  for (int i = 0; i < threads; ++i) {
    buffers.push_back(aligned_bytes(bytes));
    std::memset(buffers.back().get(), 1, bytes);
  }
  std::atomic<uint64_t> sink{0};
  return rate(threads, seconds, [&](int member) {
    const std::byte* p = buffers[static_cast<size_t>(member)].get();
    uint64_t sums[8] = {};
    for (size_t i = 0; i < bytes; i += 64)
      for (size_t j = 0; j < 8; ++j) {
        uint64_t x;
        std::memcpy(&x, p + i + 8 * j, 8);
        sums[j] += x;
      }
    for (uint64_t s : sums) sink += s;
    return static_cast<double>(bytes);
  });
}

}  // namespace aegis
