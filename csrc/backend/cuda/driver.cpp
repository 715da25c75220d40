#include "backend/cuda/driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

#include "base/fork_mutex.h"

namespace gemlet::cuda {
namespace {

constexpr int kLeastVersion = 13000;  // CUDA 13.0, whose compiler compiles the kernels
constexpr int kLeastCapability = 80;

// The file name of the driver. An emulated build has its own driver.
const char* library_name() {
  const char* const wanted = std::getenv("GEMLET_LIBCUDA");
  if (wanted && *wanted) return wanted;
#ifdef GEMLET_EMULATED_LIBCUDA
  return GEMLET_EMULATED_LIBCUDA;
#else
  return "libcuda.so.1";
#endif
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string too_old(const std::string& what) {
  return "the NVIDIA driver is too old: " + what + ", and gemlet needs one for CUDA " + version_text(kLeastVersion) +
         " (580 or newer)";
}

Gpu read_gpu(const api::Functions& f, int ordinal) {
  Gpu gpu = {};
  int major = 0, minor = 0;
  size_t bytes = 0;
  char name[256] = "GPU";
  f.cuDeviceGet(&gpu.handle, ordinal);
  f.cuDeviceGetName(name, sizeof name - 1, gpu.handle);
  f.cuDeviceGetAttribute(&major, api::kComputeMajor, gpu.handle);
  f.cuDeviceGetAttribute(&minor, api::kComputeMinor, gpu.handle);
  f.cuDeviceTotalMem_v2(&bytes, gpu.handle);
  gpu.name = name;
  gpu.capability = 10 * major + minor;
  gpu.memory = static_cast<int64_t>(bytes);
  if (gpu.capability < kLeastCapability) {
    gpu.refusal = "its compute capability is " + std::to_string(major) + "." + std::to_string(minor) +
                  ", and gemlet needs 8.0 or newer";
  }
  return gpu;
}

// Fills `driver`. Returns the reason why no GPU can be used, or "" if one can be used.
std::string open(Driver& driver) {
  void* const library = dlopen(library_name(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* const reason = dlerror();
    return "this machine has no NVIDIA driver (" + std::string(reason ? reason : library_name()) + ")";
  }
  api::Functions& f = driver.functions;
  const char* missing = nullptr;
#define GEMLET_FIND(name, args)                                       \
  f.name = reinterpret_cast<decltype(f.name)>(dlsym(library, #name)); \
  if (!f.name && !missing) missing = #name;
  GEMLET_DRIVER_FUNCTIONS(GEMLET_FIND)
#undef GEMLET_FIND
  if (f.cuDriverGetVersion) f.cuDriverGetVersion(&driver.version);
  if (driver.version < kLeastVersion) return too_old("it is for CUDA " + version_text(driver.version));
  if (missing) return too_old("it has no function " + std::string(missing));
  int count = 0;
  api::Result error = f.cuInit(0);
  if (error == api::kSuccess) error = f.cuDeviceGetCount(&count);
  if (error == api::kNoDevice || (error == api::kSuccess && count == 0)) {
    return "the NVIDIA driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it)";
  }
  if (error != api::kSuccess) return "the NVIDIA driver does not start (" + driver.error_name(error) + ")";
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    driver.gpus.push_back(read_gpu(f, ordinal));
  }
  for (const Gpu& gpu : driver.gpus) {
    if (gpu.refusal.empty()) return "";
  }
  return "no GPU of this machine can be used: of " + driver.gpus[0].name + ", " + driver.gpus[0].refusal;
}

}  // namespace

std::string Driver::error_name(api::Result error) const {
  const char* name = nullptr;
  if (functions.cuGetErrorName) functions.cuGetErrorName(error, &name);
  return name ? name : "error " + std::to_string(error);
}

Driver find_driver() {
  static Driver driver;
  static bool opened = false;
  static uint32_t generation = 0;
  const std::lock_guard lock(fork_safe_mutex());
  if (!opened) {
    driver.refusal = open(driver);
    generation = fork_generation();
    opened = true;
  }
  Driver found = driver;
  if (generation != fork_generation() && !found.gpus.empty()) {
    found.refusal = "this process was forked from one that had used CUDA, which does not work; start it with 'spawn'";
  }
  return found;
}

}  // namespace gemlet::cuda
