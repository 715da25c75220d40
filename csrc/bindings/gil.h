// Takes and releases Python's lock (the GIL).
//
// When Python ends, it ends every thread that asks for the lock. Before Python 3.14 it unwinds the thread's stack. C++
// destructors cannot be unwound like that, and Python objects must not be released without the lock. So such a thread
// waits here forever, as it does in Python 3.14, and the process ends without it. The thread holds no lock of the core
// meanwhile.
// meanwhile.
#pragma once

#include <pybind11/pybind11.h>

#include <cxxabi.h>

namespace gemlet::bindings {

// Whether Python has begun to end. From then on, only the thread that ends Python has the lock.
bool python_is_ending();

[[noreturn]] void stay_for_ever();

// Lets other Python threads run during its lifetime. Use it instead of pybind11's gil_scoped_release.
class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* thread_;  // null: this is the thread that ends Python
};

// Runs call(), which may run Python code and so release and retake the lock.
template <typename Call>
auto in_python(const Call& call) {
#ifdef __GLIBCXX__
  try {
    return call();
  } catch (abi::__forced_unwind&) {
    stay_for_ever();
  }
#else
  return call();
#endif
}

}  // namespace gemlet::bindings
