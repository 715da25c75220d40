#include "base/thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemlet {
namespace {

// Long enough to bridge the gap between two operations of a forward pass (a few microseconds), short enough not to steal a
// core from others when the model pauses.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

std::atomic<uint32_t> g_forks{0};  // generation of this process, counted up in the child of a fork

void watch_forks() {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { g_forks.fetch_add(1); }); });
}

}  // namespace

struct ThreadPool::State {
  uint32_t forks = g_forks.load();
  TaskFn fn = nullptr;
  const void* context = nullptr;
  int64_t tasks = 0;
  bool stop = false;
  alignas(64) std::atomic<uint32_t> round{0};    // counts runs; a change wakes the workers
  alignas(64) std::atomic<int64_t> next{0};      // next task to hand out
  alignas(64) std::atomic<int32_t> working{0};   // workers that have not finished this round
  std::vector<std::thread> workers;

  explicit State(int threads) {
    for (int thread = 1; thread < threads; ++thread) workers.emplace_back([this, thread] { work(thread); });
  }

  ~State() {
    stop = true;
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  void take_tasks(int thread) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(context, task, thread);
  }

  // Returns once `value` differs from `seen`: spins, then sleeps.
  template <typename T>
  static void wait_for_change(const std::atomic<T>& value, T seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (value.load(std::memory_order_acquire) != seen) return;
      relax();
    }
    value.wait(seen, std::memory_order_acquire);
  }

  void work(int thread) {
    for (uint32_t seen = 0;;) {
      wait_for_change(round, seen);
      seen = round.load(std::memory_order_acquire);
      if (stop) return;
      take_tasks(thread);
      if (working.fetch_sub(1, std::memory_order_acq_rel) == 1) working.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), state_(nullptr) {
  watch_forks();
  state_ = new State(threads_);
}

ThreadPool::~ThreadPool() {
  if (state_->forks == g_forks.load()) delete state_;  // a forked child cannot join its parent's threads
}

void ThreadPool::run_erased(int64_t tasks, const void* context, TaskFn fn) {
  if (threads_ == 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) fn(context, task, 0);
    return;
  }
  if (state_->forks != g_forks.load(std::memory_order_relaxed)) state_ = new State(threads_);
  State& state = *state_;
  state.fn = fn;
  state.context = context;
  state.tasks = tasks;
  state.next.store(0, std::memory_order_relaxed);
  state.working.store(threads_ - 1, std::memory_order_relaxed);
  state.round.fetch_add(1, std::memory_order_release);
  state.round.notify_all();
  state.take_tasks(0);
  for (int32_t left; (left = state.working.load(std::memory_order_acquire)) != 0;) {
    State::wait_for_change(state.working, left);
  }
}

}  // namespace gemlet
