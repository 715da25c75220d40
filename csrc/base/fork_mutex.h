// A mutex that survives fork(): in the child, where the thread that held it does not exist, it starts out free. Also
// counts forks for the thread pool.
#pragma once

#include <atomic>
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
  void unlock() { node_.load()->mutex.unlock(); }

 private:
  struct Node {
    uint32_t generation = fork_generation();
    std::mutex mutex;
  };
  std::atomic<Node*> node_;
};

}  // namespace gemlet
