// A file that stays open while it is used, and must not change in this time.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace gemlet {

// Fills `out` with `bytes` bytes from byte `offset` of an open file. Returns false if the file is too short or
// unreadable.
bool read_fully(int descriptor, int64_t offset, int64_t bytes, void* out);

class OpenFile {
 public:
  // Keeps a duplicate of `descriptor`, which the caller still has to close. `path` is for messages. Throws kModelFile
  // if the file is empty or not a regular file.
  OpenFile(int descriptor, std::string path);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int descriptor() const { return descriptor_; }
  int64_t size() const { return opened_.st_size; }
  const std::string& path() const { return path_; }

  // Throws kModelFile if the file's content was changed since it was opened. A change shows in the size, in the
  // modification time, or in a status change that nothing else explains. So a change is found even if the modification
  // time was set back. It is allowed to rename another file over this one, to remove it, to move it, or to change its
  // owner.
  void check() const;

  // Throws kModelFile if the file can no longer be read.
  void read(int64_t offset, int64_t bytes, void* out) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  struct stat opened_ = {};
};

}  // namespace gemlet
