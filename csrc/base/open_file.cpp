#include "base/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace gemlet {

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

OpenFile::OpenFile(int descriptor, std::string path) : path_(std::move(path)) {
  struct stat status;
  if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size < 1) {
    fail(ErrorCode::kModelFile, path_, ": is not a regular file, or it is empty");
  }
  descriptor_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (descriptor_ < 0) fail(ErrorCode::kModelFile, path_, ": cannot be kept open: ", std::strerror(errno));
  size_ = status.st_size;
  modified_seconds_ = status.st_mtim.tv_sec;
  modified_nanoseconds_ = status.st_mtim.tv_nsec;
}

OpenFile::~OpenFile() { close(descriptor_); }

void OpenFile::check() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) {
    fail(ErrorCode::kModelFile, path_, ": can no longer be read: ", std::strerror(errno), "; load the model again");
  }
  if (status.st_size < size_) {
    fail(ErrorCode::kModelFile, path_, ": was cut short while it was in use: ", status.st_size, " bytes, expected ",
         size_, "; load the model again");
  }
  if (status.st_size != size_ || status.st_mtim.tv_sec != modified_seconds_ ||
      status.st_mtim.tv_nsec != modified_nanoseconds_) {
    fail(ErrorCode::kModelFile, path_, ": was changed while it was in use; load the model again");
  }
}

void OpenFile::read(int64_t offset, int64_t bytes, void* out) const {
  if (!read_fully(descriptor_, offset, bytes, out)) {
    fail(ErrorCode::kModelFile, path_, ": can no longer be read, or was cut short; load the model again");
  }
}

}  // namespace gemlet
