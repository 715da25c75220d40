#include "backend/cuda/parameters.h"

#include <algorithm>

namespace gemlet::cuda {
namespace {

constexpr size_t kBlockAlignment = 256;

}  // namespace

Parameters::Room Parameters::room(size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
  if (used_ + rounded > size_) {
    device_.synchronize();
    used_ = 0;
    // An operation puts a few arrays into the ring. There is room for 16 of the largest, so the arrays of one operation
    // never overlap.
    if (16 * rounded > size_) {
      const size_t size = std::max(kLeastBytes, 32 * rounded);
      release();
      host_ = static_cast<uint8_t*>(device_.allocate_pinned(size));
      memory_ = device_.allocate(size);
      size_ = size;
    }
  }
  const Room at = {host_ + used_, memory_ + used_};
  used_ += rounded;
  return at;
}

void Parameters::release() noexcept {
  if (host_) device_.free_pinned(host_);
  if (memory_) device_.free(memory_);
  host_ = memory_ = nullptr;
  size_ = 0;
}

}  // namespace gemlet::cuda
