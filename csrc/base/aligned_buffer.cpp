#include "base/aligned_buffer.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>

#include "base/cpu_limits.h"
#include "base/error.h"

namespace gemlet {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kInterleave = 3;  // MPOL_INTERLEAVE of linux/mempolicy.h

// Spreads the pages over all NUMA nodes: any thread may read any of them, since tasks are claimed as they come. Where
// the system does not let us, they lie where they are touched first.
void spread(void* memory, size_t bytes) {
  static const uint64_t nodes = memory_nodes();
  if (std::popcount(nodes) < 2) return;
  const unsigned long mask = nodes;
  (void)syscall(SYS_mbind, memory, bytes, kInterleave, &mask, 8 * sizeof mask + 1, 0);
}
}  // namespace

// Anonymous mappings rather than malloc: they arrive zeroed without a pass over the memory, and munmap gives them back
// to the system at once, which close() promises.
AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    fail(ErrorCode::kMemory, "cannot allocate ", bytes,
         " bytes; use a smaller model, fewer bits per weight or a shorter context");
  }
  if (bytes >= kHugePage) {
    madvise(memory, bytes, MADV_HUGEPAGE);
    spread(memory, bytes);
  }
  data_ = static_cast<uint8_t*>(memory);
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace gemlet
