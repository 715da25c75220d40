#include "bindings/interruptible.h"

#include <pybind11/pybind11.h>

#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "base/fork_mutex.h"
#include "bindings/gil.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

constexpr std::chrono::milliseconds kPatience(20);

// This is also true in a forked process, whose one thread is Python's main thread.
bool on_main_thread() { return syscall(SYS_gettid) == getpid(); }

// Shared with the thread that works, which may release it last.
class Work {
 public:
  explicit Work(std::function<void()> work) : work_(std::move(work)) {}

  void run() {
    std::exception_ptr error;
    try {
      work_();
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    error_ = std::move(error);
    done_ = true;
    changed_.notify_one();
  }

  bool wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, kPatience, [&] { return done_; });
  }

  void rethrow() {
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  const std::function<void()> work_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::exception_ptr error_;
};

}  // namespace

void run_interruptibly(std::function<void()> work, const std::function<void()>& cancel) {
  const uint32_t forks = fork_generation();
  auto shared = std::make_shared<Work>(std::move(work));
  bool started = false;
  if (on_main_thread()) {
    try {
      std::thread([shared] { shared->run(); }).detach();
      started = true;
    } catch (const std::system_error&) {  // the system grants no thread
    }
  }
  if (!started) {
    const GilRelease release;
    shared->run();
  }
  std::optional<py::error_already_set> raised;
  const auto is_done = [&] {
    const GilRelease release;
    return shared->wait();
  };
  while (!is_done()) {
    if (!raised && PyErr_CheckSignals() != 0) raised.emplace();
    if (forks != fork_generation()) {
      leave_behind(shared);  // the thread that was to finish it is in the other process
      if (raised) throw std::move(*raised);
      fail(ErrorCode::kCancelled, "a signal handler forked this process; only the parent goes on with the work");
    }
    if (raised) cancel();  // again and again: the work may not have begun
  }
  if (raised) throw std::move(*raised);
  shared->rethrow();
}

}  // namespace gemlet::bindings
