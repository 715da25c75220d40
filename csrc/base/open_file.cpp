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

namespace {

bool same_time(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

// Links, owner, mode and name change only the time of the status.
bool explains_status(const struct stat& before, const struct stat& now, const std::string& path) {
  if (before.st_nlink != now.st_nlink || before.st_mode != now.st_mode || before.st_uid != now.st_uid ||
      before.st_gid != now.st_gid) {
    return true;
  }
  struct stat there;
  return stat(path.c_str(), &there) != 0 || there.st_dev != now.st_dev || there.st_ino != now.st_ino;
}

}  // namespace

OpenFile::OpenFile(int descriptor, std::string path) : path_(std::move(path)) {
  if (fstat(descriptor, &opened_) != 0 || !S_ISREG(opened_.st_mode) || opened_.st_size < 1) {
    fail(ErrorCode::kModelFile, path_, ": is not a regular file, or it is empty");
  }
  descriptor_ = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (descriptor_ < 0) fail(ErrorCode::kModelFile, path_, ": cannot be kept open: ", std::strerror(errno));
}

OpenFile::~OpenFile() { close(descriptor_); }

void OpenFile::check() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) {
    fail(ErrorCode::kModelFile, path_, ": can no longer be read: ", std::strerror(errno), "; load the model again");
  }
  if (status.st_size < size()) {
    fail(ErrorCode::kModelFile, path_, ": was cut short while it was in use: ", status.st_size, " bytes, expected ",
         size(), "; load the model again");
  }
  if (status.st_size != size() || !same_time(status.st_mtim, opened_.st_mtim) ||
      (!same_time(status.st_ctim, opened_.st_ctim) && !explains_status(opened_, status, path_))) {
    fail(ErrorCode::kModelFile, path_, ": was changed while it was in use; load the model again");
  }
}

void OpenFile::read(int64_t offset, int64_t bytes, void* out) const {
  if (!read_fully(descriptor_, offset, bytes, out)) {
    fail(ErrorCode::kModelFile, path_, ": can no longer be read, or was cut short; load the model again");
  }
}

}  // namespace gemlet
