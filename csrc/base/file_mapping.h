// A file that is mapped read-only. The mapped pages are the page cache's own, so all processes that map the file share
// them.
//
// A mapping cannot report an error: if the file is cut short after it was mapped, a read beyond its new end kills the
// process with SIGBUS. Therefore check() is called before each use. A file that is cut short during a use still kills
// the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/open_file.h"

namespace gemlet {

class FileMapping {
 public:
  // Maps the open file `descriptor`, which the caller still has to close. `path` is for messages. Throws kModelFile.
  FileMapping(int descriptor, std::string path);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return file_.size(); }
  const std::string& path() const { return file_.path(); }

  // Throws kModelFile if the file was changed: OpenFile::check().
  void check() const { file_.check(); }

  // Copies `bytes` bytes from `first`, an address in the mapping. It reads the file, not the mapping, so no page enters
  // this process's memory. One access to the mapping could bring in megabytes. Throws kModelFile.
  void read(const uint8_t* first, int64_t bytes, uint8_t* out) const { file_.read(first - data_, bytes, out); }
  // Removes these bytes from this process's memory. They may stay in the page cache, and the next access brings them
  // back.
  void drop(const uint8_t* first, int64_t bytes) const;

 private:
  OpenFile file_;
  const uint8_t* data_ = nullptr;
};

}  // namespace gemlet
