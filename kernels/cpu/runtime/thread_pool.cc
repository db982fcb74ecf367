#include "runtime/thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <stdexcept>

namespace aegis {
namespace {

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(100);

// Polls `ready` for kSpin. The clock (some 25 ns) is read once in 64 polls.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = Clock::now() + kSpin;
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause_cpu();
    }
    if (Clock::now() > deadline) return ready();
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads), process_(getpid()) {
  if (threads < 1) throw std::invalid_argument("a thread pool needs at least one thread");
  try {
    for (int member = 1; member < threads; ++member) parking_->workers.emplace_back([this, member] { work(member); });
  } catch (...) {  // no more threads to be had: those that did start are ended before the error travels on
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (getpid() == process_)
    stop();
  else
    static_cast<void>(parking_.release());  // left behind on purpose
}

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(parking_->mutex);
    stop_ = true;
    job_.fetch_add(1, std::memory_order_release);
  }
  parking_->wake.notify_all();
  for (std::thread& worker : parking_->workers) worker.join();
}

void ThreadPool::check_process() const {
  if (getpid() != process_)
    throw std::runtime_error("this guard was loaded before a fork; load it again in the child process");
}

void ThreadPool::run_erased(Call call, void* argument) {
  check_process();
  call_ = call;
  argument_ = argument;
  if (threads_ > 1) {
    job_.fetch_add(1, std::memory_order_seq_cst);
    if (parked_.load(std::memory_order_seq_cst) > 0) {
      {
        std::lock_guard<std::mutex> lock(parking_->mutex);
      }  // a worker is either before its check of job_ or waiting
      parking_->wake.notify_all();
    }
  }
  call(argument, 0);
  barrier();  // every member has left the function
}

void ThreadPool::work(int member) {
  uint64_t seen = 0;
  for (;;) {
    const auto ready = [&] { return job_.load(std::memory_order_seq_cst) != seen; };
    if (!spin_until(ready)) {
      std::unique_lock<std::mutex> lock(parking_->mutex);
      parked_.fetch_add(1, std::memory_order_seq_cst);
      parking_->wake.wait(lock, ready);
      parked_.fetch_sub(1, std::memory_order_relaxed);
    }
    seen = job_.load(std::memory_order_acquire);
    if (stop_) return;
    call_(argument_, member);
    barrier();
  }
}

void ThreadPool::wait_for_phase(uint32_t phase) const {
  const auto passed = [&] { return phase_.load(std::memory_order_acquire) != phase; };
  // With more threads than cores the one awaited may need this core: give it up after a bounded spin.
  if (!spin_until(passed))
    while (!passed()) sched_yield();
}

int usable_threads() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  if (std::FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "re")) {  // "quota period" in us, or "max period"
    double quota = 0, period = 0;
    if (std::fscanf(f, "%lf %lf", &quota, &period) == 2 && period > 0) {
      const int limit = static_cast<int>((quota + period - 1) / period);
      if (limit >= 1 && limit < count) count = limit;
    }
    std::fclose(f);
  }
#endif
  return count < 1 ? 1 : count;
}

}  // namespace aegis
