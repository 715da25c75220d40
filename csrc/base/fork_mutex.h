// A fair mutex that survives fork(): waiting threads get it in the order in which they came. In a forked child it is
// free, because the thread that held it does not exist there.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

namespace gemlet {

// A number that changes in the child of every fork().
uint32_t fork_generation();
// In a forked child: whether this is the thread that called fork(). Only that thread continues in the child.
bool came_by_fork();

// The process's one mutex for short sections. fork() waits until no thread holds it, so the data that it guards is
// consistent in the child.
std::mutex& fork_safe_mutex();

class ForkMutex {
 public:
  ForkMutex() : node_(new Node) {}
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock();
  void unlock();

  bool held() const;  // whether any thread holds it at this moment

  // Whether another thread held the mutex when this process was forked. That thread does not exist here, so its changes
  // may be incomplete. Code that locks the mutex, or destroys the guarded data, must call this and abandon incomplete
  // data. True until mend().
  bool torn() const;
  void mend();  // only the thread that holds the mutex may call it

 private:
  struct Node {
    uint32_t generation = fork_generation();
    std::mutex mutex;
    std::condition_variable turn;
    uint64_t next = 0;     // the ticket that the next thread draws
    uint64_t serving = 0;  // the ticket whose thread holds the mutex
    bool torn = false;
  };
  std::atomic<Node*> node_;
};

// Moves away a value whose change was incomplete, and never frees its memory.
template <typename T>
void leave_behind(T& value) {
  new T(std::move(value));
}

}  // namespace gemlet
