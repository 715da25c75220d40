// A GPU as the backend sees it: memory, copies in the order of one stream, and launches. The driver's GPU and the
// emulated one implement it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/kernels.h"

namespace gemlet::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;

  // From any thread. Memory is filled with zeros and aligned to 256 bytes. Throws kMemory.
  virtual uint8_t* allocate(size_t bytes) = 0;
  virtual void free(uint8_t* memory) noexcept = 0;

  // Copies are complete when the call returns, and so is all that was launched before.
  virtual void upload(const void* host, size_t bytes, void* memory) = 0;
  virtual void download(const void* memory, size_t bytes, void* host) = 0;

  // What follows only takes its place in the stream. `host` must stay as it is until synchronize().
  virtual void enqueue_upload(const void* host, size_t bytes, void* memory) = 0;
  virtual void enqueue_copy(const void* from, size_t bytes, void* to) = 0;
  // `args` are copied by the call.
  virtual void launch(Kernel kernel, Grid grid, int threads, int64_t shared_bytes, const void* args) = 0;
  virtual void synchronize() = 0;

  // Memory of the host that the GPU can read while the host goes on.
  virtual void* allocate_pinned(size_t bytes) = 0;
  virtual void free_pinned(void* memory) noexcept = 0;
};

// Throws kUnsupported, with the reason, where there is no GPU that can be used.
void check_device_present();
std::unique_ptr<Device> open_device();

}  // namespace gemlet::cuda
