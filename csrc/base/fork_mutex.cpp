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

void ForkMutex::lock() {
  for (;;) {
    Node* node = node_.load();
    if (node->generation == fork_generation()) return node->mutex.lock();
    Node* fresh = new Node;  // the old one stays behind: it may be locked for ever
    if (!node_.compare_exchange_strong(node, fresh)) delete fresh;
  }
}

}  // namespace gemlet
