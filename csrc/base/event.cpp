#include "base/event.h"

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#include <mutex>

#include "base/fork_mutex.h"

namespace gemlet {

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

Event::Event(Descriptor descriptor) : forks_(fork_generation()) {
  if (descriptor == Descriptor::kReadable) descriptor_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
}

Event::~Event() {
  if (descriptor_ >= 0) close(descriptor_);
}

int Event::descriptor() {
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (descriptor_ >= 0 && forks_ != fork_generation()) {
    close(descriptor_);
    descriptor_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    forks_ = fork_generation();
  }
  return descriptor_;
}

void Event::clear_descriptor() const {
  uint64_t count;
  if (descriptor_ < 0 || forks_ != fork_generation()) return;
  if (read(descriptor_, &count, sizeof(count)) < 0) return;  // it was not readable
}

void Event::notify() {
  value_.fetch_add(1, std::memory_order_release);
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&value_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  const uint64_t one = 1;
  if (descriptor_ < 0 || forks_ != fork_generation()) return;
  if (write(descriptor_, &one, sizeof(one)) < 0) return;  // full: it is readable
}

void Event::wait(uint32_t seen, std::chrono::nanoseconds patience) const {
  constexpr int64_t kSecond = 1'000'000'000;
  if (patience.count() <= 0 || value() != seen) return;
  timespec time = {};
  time.tv_sec = static_cast<time_t>(patience.count() / kSecond);
  time.tv_nsec = static_cast<long>(patience.count() % kSecond);
  syscall(SYS_futex, reinterpret_cast<const uint32_t*>(&value_), FUTEX_WAIT_PRIVATE, seen, &time, nullptr, 0);
}

}  // namespace gemlet
