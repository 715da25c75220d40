#include "base/fork_mutex.h"

#include <pthread.h>

namespace gemlet {
namespace {

std::atomic<uint32_t> g_forks{0};
std::atomic<pthread_t> g_forker{};

}  // namespace

uint32_t fork_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    g_forker.store(pthread_self());
    g_forks.fetch_add(1);
  });
  static_cast<void>(registered);
  return g_forks.load(std::memory_order_relaxed);
}

std::mutex& fork_safe_mutex() {
  static std::mutex& mutex = *new std::mutex;  // never destroyed: threads may outlive static objects
  static const int registered = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
  static_cast<void>(registered);
  return mutex;
}

bool came_by_fork() { return pthread_equal(g_forker.load(), pthread_self()) != 0; }

ForkMutex::~ForkMutex() {
  Node* const node = node_.load();
  // A node of the parent leaks: the destructor of its condition would wait for waiters that are not in this process.
  if (node->generation == fork_generation()) delete node;
}

// A thread with a long prompt locks the model's mutex for each chunk. With std::mutex, that thread would get the mutex
// back every time before a waiting thread has woken up.
void ForkMutex::lock() {
  for (;;) {
    Node* node = node_.load();
    if (node->generation != fork_generation()) {
      Node* fresh = new Node;  // the old one leaks: it may be locked forever
      fresh->torn = torn();
      if (!node_.compare_exchange_strong(node, fresh)) delete fresh;
      continue;
    }
    std::unique_lock<std::mutex> guard(node->mutex);
    const uint64_t ticket = node->next++;
    node->turn.wait(guard, [&] { return node->serving == ticket; });
    return;
  }
}

void ForkMutex::unlock() {
  Node* const node = node_.load();
  {
    const std::lock_guard<std::mutex> guard(node->mutex);
    ++node->serving;
  }
  node->turn.notify_all();
}

bool ForkMutex::held() const {
  Node* const node = node_.load();
  if (node->generation != fork_generation()) return false;
  const std::lock_guard<std::mutex> guard(node->mutex);
  return node->next != node->serving;
}

// Nobody changes a node of the parent here.
bool ForkMutex::torn() const {
  const Node* const node = node_.load();
  return node->torn || (node->generation != fork_generation() && node->next != node->serving);
}

void ForkMutex::mend() { node_.load()->torn = false; }

}  // namespace gemlet
