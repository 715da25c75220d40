// What threads wait for: a number that changes when there is news. It survives fork(), because the system keeps no
// record of who waits in another process.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace gemlet {

class Event {
 public:
  enum class Descriptor : uint8_t { kNone, kReadable };

  // With a descriptor, which poll() finds readable after notify(), for threads that wait for several things at once. If
  // the system grants no descriptor, there is none.
  explicit Event(Descriptor descriptor = Descriptor::kNone);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // -1: none. A forked process gets its own, because parent and child would otherwise take each other's news.
  int descriptor();
  // Makes it unreadable until the next notify().
  void clear_descriptor() const;

  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  // Wakes all who wait.
  void notify();
  // Returns when value() differs from `seen`, after `patience`, or for no reason.
  void wait(uint32_t seen, std::chrono::nanoseconds patience) const;

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> descriptor_{-1};
  std::atomic<uint32_t> forks_;  // the process that owns the descriptor
};

}  // namespace gemlet
