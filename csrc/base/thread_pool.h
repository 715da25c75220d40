// A pool of worker threads. run() runs tasks 0 to tasks - 1 on the workers and on the calling thread, and returns when
// all are done. Any thread may run any task, so the result of a task must not depend on the thread: therefore results
// are equal for every number of threads. Workers spin briefly between runs, then sleep. After a fork the child starts
// its own workers, or fewer if the system does not grant so many. A pool of one thread starts no workers.
#pragma once

#include <cstdint>
#include <memory>

namespace gemlet {

inline constexpr int kMaxThreads = 1024;

class ThreadPool {
 public:
  // If the system does not grant so many threads, the pool has fewer if `fewer_will_do`, and otherwise throws kMemory.
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
  State* state_;  // not owned by a smart pointer: a forked child leaks the parent's, whose threads do not exist there
};

}  // namespace gemlet
