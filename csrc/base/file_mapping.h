// A file mapped read-only: its pages are the page cache's own, shared by every process that maps it.
//
// What a mapping cannot do is report an error: a read beyond the end of a file that was cut short after mapping ends
// the process with SIGBUS. So check() is called before each use. It leaves the moment of the use itself; a program that
// replaces the file by renaming another over it, or unlinks it, is no danger at any moment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gemlet {

class FileMapping {
 public:
  // Of the open file `descriptor`, which stays the caller's; `path` is for messages. Throws kModelFile.
  FileMapping(int descriptor, std::string path);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Throws kModelFile if the file has become shorter than it was.
  void check() const;

 private:
  std::string path_;
  int descriptor_ = -1;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace gemlet
