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

void FileMapping::check() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0 || status.st_size < size_) {
    fail(ErrorCode::kModelFile, path_, ": was cut short while it was in use: ", status.st_size, " bytes, expected ",
         size_, "; load the model again");
  }
}

}  // namespace gemlet
