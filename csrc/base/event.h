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

  // With a descriptor, which poll() and its like find readable after notify(): for those who wait for many things at
  // once. There is none where the system grants none.
  explicit Event(Descriptor descriptor = Descriptor::kNone);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // -1: none. A forked process gets one of its own, or parent and child would take each other's news.
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
  std::atomic<uint32_t> forks_;  // the process that the descriptor is of
};

}  // namespace gemlet
