// Python's lock (the GIL) around work of the core.
//
// When Python ends, it ends every thread that wants the lock, and before 3.14 it does so by unwinding the thread's
// stack. Destructors of C++ cannot be unwound, and objects of Python must not be released without the lock. So such a
// thread waits here forever, as it does in 3.14, and the process ends without it. It holds no lock of the core
// meanwhile.
#pragma once

#include <pybind11/pybind11.h>

#include <cxxabi.h>

namespace gemlet::bindings {

// Whether Python has begun to end: from then on, only the thread that ends it has the lock.
bool python_is_ending();

[[noreturn]] void stay_for_ever();

// Lets other Python threads run for as long as it lives. Use it instead of pybind11's gil_scoped_release.
class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* thread_;  // null: this is the thread that ends Python
};

// Runs call(), which may run code in Python and so release the lock and wait for it again.
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
