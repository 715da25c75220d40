// Only in wheels, whose C++ runtime is inside. It would bring a reader of mangled names, 48 KB of the wheel, for
// messages of pybind11 about C++ types that Python does not know. They show the mangled names instead.
#include <cstddef>

extern "C" char* __cxa_demangle(const char*, char*, size_t*, int* status) noexcept {
  if (status) *status = -1;
  return nullptr;
}
