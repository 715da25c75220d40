// Only in wheels, which contain the C++ runtime. Its reader of mangled names would take 48 KB of the wheel. Only
// pybind11's messages about C++ types that Python does not know need it. They show the mangled names instead.
#include <cstddef>

extern "C" char* __cxa_demangle(const char*, char*, size_t*, int* status) noexcept {
  if (status) *status = -1;
  return nullptr;
}
