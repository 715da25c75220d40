// A standing pool of worker threads. run() hands out task indices 0..tasks-1; the caller works along and returns when
// all are done. Which thread runs which task is not fixed, so a task's result must not depend on it: that is what makes
// results equal for every number of threads. Workers spin briefly between runs, then sleep. Safe after fork: the
// child's pool starts anew, with fewer threads where the system grants no more. A pool of one starts none.
#pragma once

#include <cstdint>
#include <memory>

namespace gemlet {

class ThreadPool {
 public:
  // Where the system does not grant so many, it has fewer if `fewer_will_do`, else throws kMemory.
  explicit ThreadPool(int threads, bool fewer_will_do = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // From now on runs use the first `threads` of them; the others sleep. At least 1; at most all are used.
  void use(int threads);

  // Calls fn(task, thread) for every task in [0, tasks). fn must not throw. One run at a time: the owner serialises.
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
  State* state_;  // raw: after a fork the child abandons the parent's state, whose threads do not exist there
};

}  // namespace gemlet
