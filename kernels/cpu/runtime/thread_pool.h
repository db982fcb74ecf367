// A team of threads that runs one function at a time, all of them inside it at once (SPMD), with barriers.
//
// A forward pass is one such function: its stages are separated by barriers of well under a microsecond,
// where handing out each stage as tasks would cost a wake-up each. Between passes the workers spin for
// kSpin (a check often follows a check), then park: no core is kept busy by an idle guard.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace aegis {

class ThreadPool {
 public:
  // threads >= 1, the calling thread included.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  // Throws std::runtime_error in a forked child. To be called before taking a lock that another thread may have
  // held at the fork: nobody would ever release it.
  void check_process() const;

  // Calls f(member) for member 0 .. threads - 1 at once; member 0 is the caller. f must not throw.
  // One caller at a time (the model's lock sees to it). Throws std::runtime_error in a forked child,
  // which has none of the workers.
  template <class F>
  void run(F& f) {
    run_erased([](void* p, int member) { (*static_cast<F*>(p))(member); }, &f);
  }

  // Waits until every member has arrived. Inside run() only, as are its two halves: between them a member may do what
  // needs none of the others.
  void barrier() { wait(arrive()); }

  uint32_t arrive() {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    }
    return phase;
  }
  void wait(uint32_t phase) const {
    if (phase_.load(std::memory_order_acquire) == phase) wait_for_phase(phase);
  }

 private:
  using Call = void (*)(void*, int);
  void run_erased(Call call, void* argument);
  void wait_for_phase(uint32_t phase) const;
  void work(int member);
  void stop();

  const int threads_;
  const int64_t process_;
  // Each on its own cache line: written by one thread while others spin on another.
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<uint64_t> job_{0};
  alignas(64) std::atomic<int> parked_{0};
  // What parking needs. Behind a pointer because a forked child must leave it be: destroying a condition variable
  // waits for its waiters, and the child has none of the threads that would leave it.
  struct Parking {
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> workers;
  };
  std::unique_ptr<Parking> parking_ = std::make_unique<Parking>();
  bool stop_ = false;  // published by job_
  Call call_ = nullptr;
  void* argument_ = nullptr;
};

// Threads this process may use: its affinity mask, cut by the cgroup's CPU quota; at least 1.
int usable_threads();

}  // namespace aegis
