#include "base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/fork_mutex.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gemlet {
namespace {

// Long enough for the gap between two operations of a forward pass, a few microseconds; short enough not to take a core
// from other programs when the model pauses.
constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

// Every thread begins with its own share of a run, which is neighbouring tasks, and then helps the others. So each
// thread streams one long stretch of the weights, which is a fifth faster than if the threads took neighbouring tasks
// alternately.
//
// A share is one word: (round, end, next). A thread takes a task when it increments `next` by compare-and-swap. A
// worker reads fn and context only after it has taken a task, and the caller returns only after every taken task is
// done, so both are valid. The caller never waits for a worker that has taken no task: on a busy machine a worker may
// be off its CPU for milliseconds, and a forward pass has hundreds of runs.
struct ThreadPool::State {
  static constexpr int kBits = 20;  // bits of `end` and of `next`; the other bits are the round
  static constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;
  struct alignas(64) Share {
    std::atomic<uint64_t> ticket{0};
  };

  uint32_t forks = fork_generation();
  TaskFn fn = nullptr;
  const void* context = nullptr;
  int64_t first_task = 0;
  std::vector<Share> shares;
  alignas(64) std::atomic<uint32_t> round{0};  // changes with every run; sleeping workers wait for it
  alignas(64) std::atomic<int64_t> done{0};    // tasks finished in this round
  std::atomic<int64_t> tasks{0};               // the tasks of this round
  std::atomic<int> used;                       // workers from this number on sleep until it changes
  std::atomic<bool> stop{false};
  std::vector<std::thread> workers;

  // Starts fewer workers if the system grants no more threads. The caller checks threads().
  State(int most_threads, int used_threads) : shares(static_cast<size_t>(most_threads)), used(used_threads) {
    try {
      workers.reserve(shares.size());
      for (int thread = 1; thread < most_threads; ++thread) workers.emplace_back([this, thread] { work(thread); });
    } catch (const std::exception&) {
    }
    use(std::min(used_threads, threads()));
  }

  int threads() const { return static_cast<int>(workers.size()) + 1; }

  ~State() { join(); }

  void join() {
    stop.store(true, std::memory_order_relaxed);
    use(0);
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  // 0 wakes all of them up.
  void use(int count) {
    used.store(count, std::memory_order_release);
    used.notify_all();
  }

  void take_tasks(int thread) {
    for (size_t i = 0; i < shares.size(); ++i)
      take_share(shares[(static_cast<size_t>(thread) + i) % shares.size()], thread);
  }

  void take_share(Share& share, int thread) {
    uint64_t seen = share.ticket.load(std::memory_order_acquire);
    for (;;) {
      const uint64_t next = seen & kMask, end = (seen >> kBits) & kMask;
      if (next >= end) return;
      if (!share.ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      fn(context, first_task + static_cast<int64_t>(next), thread);
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks.load(std::memory_order_relaxed)) done.notify_one();
      seen = share.ticket.load(std::memory_order_acquire);
    }
  }

  // Returns when `value` differs from `seen`. Spins, then sleeps.
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
      if (stop.load(std::memory_order_relaxed)) return;
      if (const int count = used.load(std::memory_order_acquire); count > 0 && thread >= count) {
        used.wait(count, std::memory_order_acquire);
        continue;
      }
      take_tasks(thread);
    }
  }

  void run(int64_t first, int64_t run_tasks, const void* run_context, TaskFn run_fn) {
    fn = run_fn;
    context = run_context;
    first_task = first;
    tasks.store(run_tasks, std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
    const uint64_t number = round.load(std::memory_order_relaxed) + 1;
    const int64_t count = used.load(std::memory_order_relaxed);
    for (int64_t i = 0; i < count; ++i) {
      const auto begin = static_cast<uint64_t>(run_tasks * i / count);
      const auto end = static_cast<uint64_t>(run_tasks * (i + 1) / count);
      shares[static_cast<size_t>(i)].ticket.store((number << (2 * kBits)) | (end << kBits) | begin,
                                                  std::memory_order_release);
    }
    round.store(static_cast<uint32_t>(number), std::memory_order_release);
    round.notify_all();
    take_tasks(0);
    for (int64_t have; (have = done.load(std::memory_order_acquire)) != run_tasks;) wait_for_change(done, have);
  }
};

ThreadPool::ThreadPool(int threads, bool fewer_will_do) : state_(new State(threads, threads)) {
  threads_ = used_ = state_->threads();
  if (threads_ < threads && !fewer_will_do) {
    delete state_;
    fail(ErrorCode::kMemory, "cannot start ", threads, " threads, only ", threads_, "; ask for fewer");
  }
}

ThreadPool::~ThreadPool() {
  if (state_->forks == fork_generation()) delete state_;  // a forked child cannot join its parent's threads
}

void ThreadPool::use(int threads) {
  threads = std::min(threads, threads_);
  if (threads == used_) return;
  used_ = threads;
  if (state_->forks == fork_generation()) state_->use(std::min(threads, state_->threads()));
}

void ThreadPool::run_erased(int64_t tasks, const void* context, TaskFn fn) {
  if (used_ == 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) fn(context, task, 0);
    return;
  }
  if (state_->forks != fork_generation()) state_ = new State(threads_, used_);
  constexpr int64_t kMost = static_cast<int64_t>(State::kMask);
  for (int64_t first = 0; first < tasks; first += kMost) {
    state_->run(first, std::min(kMost, tasks - first), context, fn);
  }
}

}  // namespace gemlet
