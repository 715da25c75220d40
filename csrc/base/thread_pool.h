// A pool of worker threads. run() runs the tasks 0 to tasks - 1 on the workers and on the calling thread, and returns
// when all are done. Any thread may run any task, so a task's result must not depend on the thread. Therefore results
// do not depend on the number of threads. Between runs, workers spin briefly and then sleep. After a fork, the child
// starts workers of its own. It has fewer if the system grants fewer. A pool of one thread starts no workers.
#pragma once

#include <cstdint>
#include <memory>

namespace gemlet {

inline constexpr int kMaxThreads = 1024;

class ThreadPool {
 public:
  // If the system grants fewer threads, the pool has fewer if `fewer_will_do`. Otherwise the constructor throws
  // kMemory.
  explicit ThreadPool(int threads, bool fewer_will_do = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Makes later runs use only the first `threads` threads, at least 1 and at most threads(). The others sleep.
  void use(int threads);

  // Calls fn(task, thread) for every task in [0, tasks). fn must not throw. The caller makes sure that only one run is
  // in progress.
  template <typename Fn>
  void run(int64_t tasks, const Fn& fn) {
    run_erased(tasks, &fn,
               [](const void* context, int64_t task, int thread) { (*static_cast<const Fn*>(context))(task, thread); });
  }

 private:
  using TaskFn = void (*)(const void* context, int64_t task, int thread);
  void run_erased(int64_t tasks, const void* context, TaskFn fn);

  struct State;
  int threads_;
  int used_;
  // not a smart pointer: a forked child leaks the parent's state, whose threads do not exist in the child
  State* state_;
};

}  // namespace gemlet
