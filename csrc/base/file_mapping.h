// A file mapped read-only: its pages are the page cache's own, shared by every process that maps it.
//
// What a mapping cannot do is report an error: a read beyond the end of a file that was cut short after mapping ends
// the process with SIGBUS. So check() is called before each use. It leaves the moment of the use itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/open_file.h"

namespace gemlet {

class FileMapping {
 public:
  // Of the open file `descriptor`, which stays the caller's; `path` is for messages. Throws kModelFile.
  FileMapping(int descriptor, std::string path);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return file_.size(); }
  const std::string& path() const { return file_.path(); }

  // Throws kModelFile if the file was changed: OpenFile::check().
  void check() const { file_.check(); }

  // Copies `bytes` from `first` of the mapping through the file: no page of it becomes this process's, where one access
  // to a mapping may bring megabytes. Throws kModelFile.
  void read(const uint8_t* first, int64_t bytes, uint8_t* out) const { file_.read(first - data_, bytes, out); }
  // Takes these bytes out of this process's memory; they may stay in the page cache, and are mapped again when they are
  // used.
  void drop(const uint8_t* first, int64_t bytes) const;

 private:
  OpenFile file_;
  const uint8_t* data_ = nullptr;
};

}  // namespace gemlet
