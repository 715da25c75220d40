// Memory in which the host makes what a backend's memory is going to hold.
#pragma once

#include "backend/backend.h"
#include "base/aligned_buffer.h"

namespace gemlet {

// If the backend's memory is the host's, this is that memory itself; otherwise it is a buffer, which finish() uploads.
// After finish() it can be filled again.
class Staging {
 public:
  Staging(Backend& backend, uint8_t* memory, int64_t bytes)
      : backend_(backend), memory_(memory), bytes_(static_cast<size_t>(bytes)) {
    if (!backend.host_memory()) buffer_ = AlignedBuffer(bytes_);
  }
  uint8_t* host() { return backend_.host_memory() ? memory_ : buffer_.data(); }
  void finish() {
    if (!backend_.host_memory()) backend_.upload(buffer_.data(), bytes_, memory_);
  }

 private:
  Backend& backend_;
  uint8_t* memory_;
  size_t bytes_;
  AlignedBuffer buffer_;
};

}  // namespace gemlet
