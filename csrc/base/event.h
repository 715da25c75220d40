// An event that threads can wait for. Its value is a number that changes with each notification. An event survives
// fork(), because the system keeps no record of the waiting threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace gemlet {

class Event {
 public:
  enum class Descriptor : uint8_t { kNone, kReadable };

  // An event with a descriptor is for threads that wait for several things at once. After notify(), poll() reports the
  // descriptor as readable. If the system grants no descriptor, the event has none.
  explicit Event(Descriptor descriptor = Descriptor::kNone);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // The descriptor, or -1 if there is none. A forked process gets its own descriptor. With a shared one, parent and
  // child would take each other's notifications.
  int descriptor();
  // Makes the descriptor unreadable until the next notify().
  void clear_descriptor() const;

  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  // Wakes all waiting threads.
  void notify();
  // Returns when value() differs from `seen`, or after `patience`. It may also return earlier for no reason.
  void wait(uint32_t seen, std::chrono::nanoseconds patience) const;

 private:
  std::atomic<uint32_t> value_{0};
  std::atomic<int> descriptor_{-1};
  std::atomic<uint32_t> forks_;  // the process that owns the descriptor
};

}  // namespace gemlet
