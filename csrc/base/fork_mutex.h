// A fair mutex that survives fork(). The thread that has waited longest gets it next. In a forked child it is free,
// because the thread that held it does not exist there.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace gemlet {

// A number that changes in the child of every fork().
uint32_t fork_generation();

// A mutex for short sections. fork() waits until nobody holds it, so that the data behind it is whole in the child.
// There is one for the process.
std::mutex& fork_safe_mutex();

class ForkMutex {
 public:
  ForkMutex() : node_(new Node) {}
  ~ForkMutex() { delete node_.load(); }
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock();
  void unlock();

 private:
  struct Node {
    uint32_t generation = fork_generation();
    std::mutex mutex;
    std::condition_variable turn;
    uint64_t next = 0;     // the ticket that the next thread draws
    uint64_t serving = 0;  // the ticket whose thread holds the mutex
  };
  std::atomic<Node*> node_;
};

}  // namespace gemlet
