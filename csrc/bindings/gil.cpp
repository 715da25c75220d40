#include "bindings/gil.h"

#include <unistd.h>

namespace gemlet::bindings {

bool python_is_ending() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() || !Py_IsInitialized();
#else
  return _Py_IsFinalizing() || !Py_IsInitialized();
#endif
}

void stay_for_ever() {
  for (;;) pause();
}

GilRelease::GilRelease() : thread_(python_is_ending() ? nullptr : PyEval_SaveThread()) {}

GilRelease::~GilRelease() {
  if (!thread_) return;
  if (python_is_ending()) stay_for_ever();
  in_python([&] { PyEval_RestoreThread(thread_); });  // the end may begin while it waits
}

}  // namespace gemlet::bindings
