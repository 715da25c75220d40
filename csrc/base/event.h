// What threads wait for: a number that changes when there is news. It survives fork(), because the system keeps no
// record of who waits in another process.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace gemlet {

class Event {
 public:
  uint32_t value() const { return value_.load(std::memory_order_acquire); }
  // Wakes all who wait.
  void notify();
  // Returns when value() differs from `seen`, after `patience`, or for no reason.
  void wait(uint32_t seen, std::chrono::nanoseconds patience) const;

 private:
  std::atomic<uint32_t> value_{0};
};

}  // namespace gemlet
