// A mutex that is fair and survives fork(): who waits longest comes next, and in a child, where the thread that held it
// does not exist, it starts out free.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace gemlet {

// Changes in the child of every fork().
uint32_t fork_generation();

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
    uint64_t next = 0;     // ticket of the next to come
    uint64_t serving = 0;  // ticket of the holder
  };
  std::atomic<Node*> node_;
};

}  // namespace gemlet
