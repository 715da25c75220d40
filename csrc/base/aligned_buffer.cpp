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

// Spreads the pages over all NUMA nodes, because any thread may read any of them: no task belongs to a certain thread.
// If the system does not allow it, a page lies on the node that touches it first.
void spread(void* memory, size_t bytes) {
  static const uint64_t nodes = memory_nodes();
  if (std::popcount(nodes) < 2) return;
  const unsigned long mask = nodes;
  (void)syscall(SYS_mbind, memory, bytes, kInterleave, &mask, 8 * sizeof mask + 1, 0);
}
}  // namespace

// The memory is an anonymous mapping instead of malloc's. The system hands it out zeroed, without a pass over it, and
// munmap returns it to the system at once, which Model::close() promises.
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
