#include "base/file_mapping.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace gemlet {

FileMapping::FileMapping(int descriptor, std::string path) : file_(descriptor, std::move(path)) {
  void* const memory = mmap(nullptr, static_cast<size_t>(file_.size()), PROT_READ, MAP_SHARED, file_.descriptor(), 0);
  if (memory == MAP_FAILED) {
    fail(ErrorCode::kModelFile, file_.path(), ": cannot be mapped: ", std::strerror(errno));
  }
#ifdef MADV_HUGEPAGE
  // Asks for huge pages, where the file system has them: a page fault then maps 2 MB of the file instead of 64 kB.
  // If the kernel has no huge pages for files, this changes nothing.
  madvise(memory, static_cast<size_t>(file_.size()), MADV_HUGEPAGE);
#endif
  data_ = static_cast<const uint8_t*>(memory);
}

FileMapping::~FileMapping() { munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(file_.size())); }

// The pages leave the page tables and the resident set. The first and the last one may hold other bytes too; these come
// back when they are read.
void FileMapping::drop(const uint8_t* first, int64_t bytes) const {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(first) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(first) + static_cast<uintptr_t>(bytes);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace gemlet
