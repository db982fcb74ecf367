// The thread team: runs, barriers, parking, waking, ending, and what a forked child finds.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "runtime/thread_pool.h"
#include "support.h"

using namespace aegis;
using namespace aegis::test;

namespace {

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// Every member adds its number, waits for the others, and sees all of their sums.
void check_runs(ThreadPool& pool, int runs) {
  const int n = pool.threads();
  std::vector<int> calls(sz(n)), wrong(sz(n));
  for (int run = 0; run < runs; ++run) {
    auto body = [&](int member) {
      ++calls[sz(member)];
      pool.barrier();
      for (int other : calls) wrong[sz(member)] += other != run + 1;
      pool.barrier();
    };
    pool.run(body);
  }
  for (int member = 0; member < n; ++member) {
    CHECK(calls[sz(member)] == runs);
    CHECK(wrong[sz(member)] == 0);
  }
}

// Runs f in a forked child that is killed after ten seconds; true where it returned true in time.
template <class F>
bool in_child(const F& f) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    _exit(f() ? 0 : 1);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST(many_short_runs) {
  for (int threads : {1, 2, 3}) {
    about("%d threads", threads);
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    check_runs(pool, 500);
  }
}

TEST(more_threads_than_cores) {
  ThreadPool pool(17);
  check_runs(pool, 30);
}

TEST(parks_and_wakes) {
  ThreadPool pool(3);
  for (int i = 0; i < 20; ++i) {
    check_runs(pool, 2);
    sleep_ms(i % 4);  // workers spin for 0.1 ms: most of these find them parked
  }
}

TEST(runs_end_while_workers_park) {
  ThreadPool pool(2);
  auto body = [](int) {};
  for (int i = 0; i < 300; ++i) {
    pool.run(body);
    std::this_thread::sleep_for(std::chrono::microseconds(60 + i % 100));  // around the moment of parking
  }
}

TEST(destroyed_at_any_moment) {
  for (int i = 0; i < 40; ++i) {
    auto pool = std::make_unique<ThreadPool>(3);
    if (i % 2 == 0) check_runs(*pool, 1);
    if (i % 4 < 2) sleep_ms(1);  // parked; else spinning, or not yet started
  }
}

TEST(refuses_no_threads) {
  for (int threads : {0, -1}) CHECK_THROWS(ThreadPool{threads}, std::invalid_argument, "at least one thread");
}

TEST(usable_threads_are_at_least_one) { CHECK(usable_threads() >= 1); }

// A child has none of the workers: it is told so, and can let go of the team, whether it was parked or spinning.
TEST(forked_child) {
  for (bool parked : {false, true}) {
    about("parked=%d", parked);
    auto pool = std::make_unique<ThreadPool>(3);
    check_runs(*pool, 1);
    if (parked) sleep_ms(5);
    CHECK(in_child([&] {
      bool refused = false;
      auto body = [](int) {};
      try {
        pool->run(body);
      } catch (const std::runtime_error& error) {
        refused = std::strstr(error.what(), "fork") != nullptr;
      }
      pool.reset();
      ThreadPool own(emulated() ? 1 : 2);  // a new one works
      check_runs(own, 3);
      return refused && failures == 0;
    }));
    check_runs(*pool, 3);  // and the parent's still does
  }
}

// Where the system has no threads left the constructor throws; it neither aborts nor leaves threads behind.
#if !defined(__SANITIZE_ADDRESS__)  // which needs its address space
TEST(out_of_threads) {
  if (emulated()) return;
  CHECK(in_child([] {
    rlimit limit{size_t{1} << 28, size_t{1} << 28};  // 256 MB of address space: some 30 stacks of 8 MB
    setrlimit(RLIMIT_AS, &limit);
    try {
      ThreadPool pool(500);
    } catch (const std::system_error&) {
      return true;
    }
    return false;
  }));
}
#endif
