// Sends small arrays from the host to the device for kernels: token ids, positions, places of blocks.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "backend/cuda/device.h"

namespace gemlet::cuda {

// A ring buffer in pinned memory of the host, and a copy of it on the device. put() copies an array into both buffers,
// in the order of the stream. An array stays until the ring wraps around. Before the ring wraps around, it waits for
// the stream.
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
  // Room for `bytes` bytes on the device and on the host. The caller fills it on the host before it is sent.
  struct Room {
    uint8_t *host, *memory;
  };
  Room room(size_t bytes);
  // Returns to the beginning of the ring if the GPU is idle, so that a pass uses the same addresses as the previous
  // pass.
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
