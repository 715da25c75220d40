// The devices by name.
#include <string_view>

#include "backend/backend.h"
#include "base/error.h"

namespace gemlet {
namespace {

struct Device {
  std::string_view name;
  void (*check)();
  std::unique_ptr<Backend> (*make)(const BackendOptions& options);
};
constexpr Device kDevices[] = {
    {"cpu", [] {}, make_cpu_backend},
    {"cuda", check_cuda, make_cuda_backend},
};

const Device& find_device(const std::string& name) {
  std::string names;
  for (const Device& device : kDevices) {
    if (device.name == name) return device;
    names += (names.empty() ? "'" : " or '") + std::string(device.name) + "'";
  }
  fail(ErrorCode::kUnsupported, "device is '", name, "'; expected ", names);
}

}  // namespace

void check_device(const std::string& name) { find_device(name).check(); }

std::unique_ptr<Backend> make_backend(const std::string& device, const BackendOptions& options) {
  const Device& found = find_device(device);
  found.check();
  return found.make(options);
}

}  // namespace gemlet
