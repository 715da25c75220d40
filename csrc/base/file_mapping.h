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

// Fills `out` from byte `offset` of an open file. False if the file ends before or cannot be read.
bool read_fully(int descriptor, int64_t offset, int64_t bytes, void* out);

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

  // Copies `bytes` from `first` of the mapping through the file: no page of it becomes this process's, where one access
  // to a mapping may bring megabytes. Throws kModelFile.
  void read(const uint8_t* first, int64_t bytes, uint8_t* out) const;
  // Takes these bytes out of this process's memory; they may stay in the page cache, and are mapped again when they are
  // used.
  void drop(const uint8_t* first, int64_t bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace gemlet
