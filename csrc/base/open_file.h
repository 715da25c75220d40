// A file that stays open for as long as it is used, and has to stay as it was then.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

namespace gemlet {

// Fills `out` from byte `offset` of an open file. False if the file ends before or cannot be read.
bool read_fully(int descriptor, int64_t offset, int64_t bytes, void* out);

class OpenFile {
 public:
  // The open file `descriptor`, which stays the caller's; `path` is for messages. Throws kModelFile if it is not a
  // regular file, or empty.
  OpenFile(int descriptor, std::string path);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int descriptor() const { return descriptor_; }
  int64_t size() const { return opened_.st_size; }
  const std::string& path() const { return path_; }

  // Throws kModelFile if the file has another size or time of modification than when it was opened, or if its status
  // changed and only a change of the content explains that. So a change that sets the time back is found too. Replacing
  // the file by renaming another over it, removing or moving it, or giving it to another owner does no harm.
  void check() const;

  // Throws kModelFile.
  void read(int64_t offset, int64_t bytes, void* out) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  struct stat opened_ = {};
};

}  // namespace gemlet
