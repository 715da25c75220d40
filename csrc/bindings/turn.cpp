#include "bindings/turn.h"

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#include "base/fork_mutex.h"
#include "bindings/gil.h"

namespace py = pybind11;

namespace gemlet::bindings {

bool Turn::enter() {
  constexpr std::chrono::microseconds kPause(200);
  const unsigned long me = PyThread_get_thread_ident();
  for (;;) {
    // In a forked process, a new thread may have the same number as a thread of the parent.
    const bool is_forked = forks_ != fork_generation();
    const bool is_mine = depth_ > 0 && thread_ == me && (!is_forked || came_by_fork());
    if (is_mine) break;
    if (depth_ == 0 || is_forked || python_is_ending()) {
      depth_ = 0;
      thread_ = me;
      break;
    }
    {
      const GilRelease release;
      std::this_thread::sleep_for(kPause);
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  forks_ = fork_generation();
  return ++depth_ == 1;
}

// A thread that has lost its turn to the end of Python does not come back here.
void Turn::leave() {
  if (depth_ > 0) --depth_;
}

}  // namespace gemlet::bindings
