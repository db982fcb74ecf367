#include "model/gemm_speed.h"

#include <chrono>
#include <stdexcept>
#include <vector>

#include "model/linear.h"
#include "runtime/thread_pool.h"

namespace aegis {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

GemmSpeed measure_gemm(const Kernels& kernels, int rows, int n, int k, int threads, int copies, int rounds) {
  if (rows < 1 || n < 16 || n % 16 != 0 || k < 16 || k % 16 != 0 || threads < 1 || copies < 1 || rounds < 1)
    throw std::invalid_argument("a GEMM needs rows >= 1, n and k multiples of 16, threads, copies and rounds >= 1");
  const size_t weights = static_cast<size_t>(n) * static_cast<size_t>(k);
  std::vector<int8_t> w(weights);
  uint32_t state = 1;
  for (int8_t& x : w) x = static_cast<int8_t>((state = state * 1664525u + 1013904223u) >> 25);
  const std::vector<float> scale(static_cast<size_t>(n), 1e-3f), a_scale(static_cast<size_t>(rows), 1e-2f);
  HugePages pages;
  std::vector<Linear> linears(static_cast<size_t>(copies));
  for (Linear& l : linears) {
    l.use(pages);
    l.pack_int8(w.data(), scale.data(), n, k, RowOrder::kPlain, kernels);
  }
  std::vector<uint8_t> a(static_cast<size_t>(rows) * static_cast<size_t>(k));
  for (uint8_t& x : a) x = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(n));

  const Inputs inputs{a.data(), a_scale.data(), rows};
  ThreadPool pool(threads);
  // A multiply-add costs at most a nanosecond, so a peak round is some tenths of a millisecond.
  constexpr int64_t kPeakSteps = 4000;
  GemmSpeed best{0.0, 0.0};
  for (int round = 0; round < rounds; ++round) {
    const Linear& linear = linears[static_cast<size_t>(round % copies)];
    const Linear& next = linears[static_cast<size_t>((round + 1) % copies)];
    const int halves = linear.half_panels();
    auto multiply = [&](int member) {
      const int begin = halves * member / threads, end = halves * (member + 1) / threads;
      linear.run(kernels, inputs, out.data(), static_cast<size_t>(n), Epilogue::kStore, begin, end,
                 next.panel(begin / 2), nullptr, nullptr);
    };
    std::vector<double> done(static_cast<size_t>(threads));
    auto dot = [&](int member) {
      done[static_cast<size_t>(member)] = 2.0 * static_cast<double>(kernels.peak_int8(kPeakSteps) * kPeakSteps);
    };
    double start = seconds();
    pool.run(multiply);
    const double gemm = 2.0 * rows * n * k / (seconds() - start);
    start = seconds();
    pool.run(dot);
    double total = 0.0;
    for (double d : done) total += d;
    const double peak = total / (seconds() - start);
    best.gemm = gemm > best.gemm ? gemm : best.gemm;
    best.peak = peak > best.peak ? peak : best.peak;
  }
  return best;
}

}  // namespace aegis
