#include "base/aligned_buffer.h"

#include <sys/mman.h>

#include "base/error.h"

namespace gemlet {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

// Anonymous mappings rather than malloc: they arrive zeroed without a pass over the memory, and munmap gives them back
// to the system at once, which close() promises.
AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fail(ErrorCode::kMemory, "cannot allocate ", bytes,
         " bytes; use a smaller model, fewer bits per weight or a shorter context");
  }
  if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
  data_ = static_cast<uint8_t*>(memory);
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace gemlet
