#include "base/file_mapping.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace gemlet {

FileMapping::FileMapping(int descriptor, std::string path) : path_(std::move(path)) {
  struct stat status;
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size < 1) {
    fail(ErrorCode::kModelFile, path_, ": cannot be mapped: it is not a regular file, or it is empty");
  }
  const int own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (own < 0) fail(ErrorCode::kModelFile, path_, ": cannot be mapped: ", std::strerror(errno));
  void* const memory = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_SHARED, own, 0);
  if (memory == MAP_FAILED) {
    const int reason = errno;
    close(own);
    fail(ErrorCode::kModelFile, path_, ": cannot be mapped: ", std::strerror(reason));
  }
  descriptor_ = own;
  data_ = static_cast<const uint8_t*>(memory);
  size_ = status.st_size;
}

FileMapping::~FileMapping() {
  munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(size_));
  close(descriptor_);
}

bool read_fully(int descriptor, int64_t offset, int64_t bytes, void* out) {
  while (bytes > 0) {
    const ssize_t count = pread(descriptor, out, static_cast<size_t>(bytes), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    out = static_cast<uint8_t*>(out) + count;
    offset += count;
    bytes -= count;
  }
  return true;
}

void FileMapping::check() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0 || status.st_size < size_) {
    fail(ErrorCode::kModelFile, path_, ": was cut short while it was in use: ", status.st_size, " bytes, expected ",
         size_, "; load the model again");
  }
}

void FileMapping::read(const uint8_t* first, int64_t bytes, uint8_t* out) const {
  if (!read_fully(descriptor_, first - data_, bytes, out)) {
    fail(ErrorCode::kModelFile, path_, ": can no longer be read, or was cut short; load the model again");
  }
}

// The pages leave the page tables and the resident set. The first and the last one may hold other bytes too; these come
// back when they are read.
void FileMapping::drop(const uint8_t* first, int64_t bytes) const {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(first) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(first) + static_cast<uintptr_t>(bytes);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace gemlet
