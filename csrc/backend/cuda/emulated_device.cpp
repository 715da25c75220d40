// The device of a build with GEMLET_CUDA=emulated: kernels run on the CPU, in kernels/cuda/emulated.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "backend/cuda/device.h"
#include "base/error.h"
#include "kernels/cuda/emulated/cuda.h"

namespace gemlet::cuda {

#define GEMLET_DECLARE_FUNCTION(name, Args) void name(const Args args);
GEMLET_CUDA_KERNELS(GEMLET_DECLARE_FUNCTION)
#undef GEMLET_DECLARE_FUNCTION

namespace {

constexpr size_t kAlignment = 256;
using Function = void (*)(const void* args);
constexpr Function kFunctions[] = {
#define GEMLET_FUNCTION(name, Args) [](const void* args) { name(*static_cast<const Args*>(args)); },
    GEMLET_CUDA_KERNELS(GEMLET_FUNCTION)
#undef GEMLET_FUNCTION
};

class EmulatedDevice : public Device {
 public:
  std::string name() const override { return "emulated GPU"; }
  uint8_t* allocate(size_t bytes) override {
    void* const memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (!memory) fail(ErrorCode::kMemory, "the emulated GPU has no ", bytes, " bytes left");
    std::memset(memory, 0, bytes);
    return static_cast<uint8_t*>(memory);
  }
  void free(uint8_t* memory) noexcept override { std::free(memory); }
  void upload(const void* host, size_t bytes, void* memory) override { std::memcpy(memory, host, bytes); }
  void download(const void* memory, size_t bytes, void* host) override { std::memcpy(host, memory, bytes); }
  void enqueue_upload(const void* host, size_t bytes, void* memory) override { std::memcpy(memory, host, bytes); }
  void enqueue_copy(const void* from, size_t bytes, void* to) override { std::memcpy(to, from, bytes); }
  void launch(Kernel kernel, Grid grid, int threads, int64_t shared_bytes, const void* args) override {
    const emulated::Launch launch = {
        {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)},
        static_cast<unsigned>(threads),
        static_cast<size_t>(shared_bytes),
        ++launches_};
    emulated::run(kFunctions[static_cast<size_t>(kernel)], args, launch);
  }
  void synchronize() override {}
  void* allocate_pinned(size_t bytes) override { return allocate(bytes); }
  void free_pinned(void* memory) noexcept override { std::free(memory); }

 private:
  uint64_t launches_ = 0;  // seeds of the order of threads
};

}  // namespace

void check_device_present() {}

std::unique_ptr<Device> open_device() { return std::make_unique<EmulatedDevice>(); }

}  // namespace gemlet::cuda
