// Small arrays of the host that kernels read: ids, positions, places of blocks.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "backend/cuda/device.h"

namespace gemlet::cuda {

// A ring buffer in pinned memory of the host, and its copy on the device. put() copies an array into both, in the order
// of the stream. An array stays until the ring wraps around, which first waits for the stream.
class Parameters {
 public:
  static constexpr size_t kLeastBytes = size_t{4} << 20;  // the least size of each of the two buffers

  explicit Parameters(Device& device) : device_(device) {}
  ~Parameters() { release(); }
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  template <typename Value>
  const Value* put(std::span<const Value> values) {
    return reinterpret_cast<const Value*>(put_bytes(values.data(), values.size_bytes()));
  }
  // Room on the device and the host for `bytes` bytes, to be filled before it is sent.
  struct Room {
    uint8_t *host, *memory;
  };
  Room room(size_t bytes);
  // Returns to the beginning of the ring if the GPU is idle, so that a pass has the addresses of the one before.
  void rewind() {
    if (device_.idle()) used_ = 0;
  }
  void send(const Room& room, size_t bytes) { device_.enqueue_upload(room.host, bytes, room.memory); }

 private:
  const uint8_t* put_bytes(const void* values, size_t bytes) {
    const Room at = room(bytes);
    if (bytes == 0) return at.memory;
    std::memcpy(at.host, values, bytes);
    send(at, bytes);
    return at.memory;
  }
  void release() noexcept;

  Device& device_;
  uint8_t *host_ = nullptr, *memory_ = nullptr;
  size_t size_ = 0, used_ = 0;
};

}  // namespace gemlet::cuda
