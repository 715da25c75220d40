#include "base/fork_mutex.h"

#include <pthread.h>

namespace gemlet {
namespace {

std::atomic<uint32_t> g_forks{0};

}  // namespace

uint32_t fork_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { g_forks.fetch_add(1); });
  static_cast<void>(registered);
  return g_forks.load(std::memory_order_relaxed);
}

std::mutex& fork_safe_mutex() {
  static std::mutex& mutex = *new std::mutex;  // never destroyed: threads may outlive static objects
  static const int registered = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
  static_cast<void>(registered);
  return mutex;
}

// A thread with a long prompt locks the model's mutex for each chunk. With std::mutex it would get it back every time,
// before a waiting thread has woken up.
void ForkMutex::lock() {
  for (;;) {
    Node* node = node_.load();
    if (node->generation != fork_generation()) {
      Node* fresh = new Node;  // the old one leaks: it may be locked for ever
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

}  // namespace gemlet
