#include "bindings/gil.h"

#include <unistd.h>

namespace gemlet::bindings {
namespace {

// From here on other threads than the one that ends Python do not get the lock any more.
bool python_is_ending() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() || !Py_IsInitialized();
#else
  return _Py_IsFinalizing() || !Py_IsInitialized();
#endif
}

}  // namespace

void stay_for_ever() {
  for (;;) pause();
}

// Whoever has the lock while Python ends is the thread that ends it, and would not get it back from a thread's view.
GilRelease::GilRelease() : thread_(python_is_ending() ? nullptr : PyEval_SaveThread()) {}

GilRelease::~GilRelease() {
  if (!thread_) return;
  if (python_is_ending()) stay_for_ever();
  in_python([&] { PyEval_RestoreThread(thread_); });  // the end may begin while it waits
}

}  // namespace gemlet::bindings
