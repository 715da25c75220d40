// A file mapped read-only. Its pages are those of the page cache, so all processes that map the file share them.
//
// A mapping cannot report an error: if the file is cut short after it was mapped, a read beyond its new end kills the
// process with SIGBUS. Therefore check() is called before each use. A file that is cut short during a use still kills
// the process. A program that removes the file or renames another one over it does no harm at any time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gemlet {

// Fills `out` from byte `offset` of an open file. Returns false if the file is too short or cannot be read.
bool read_fully(int descriptor, int64_t offset, int64_t bytes, void* out);

class FileMapping {
 public:
  // Maps the open file `descriptor`, which the caller still has to close. `path` is for messages. Throws kModelFile.
  FileMapping(int descriptor, std::string path);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  const uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Throws kModelFile if the file has become shorter than it was.
  void check() const;

  // Copies `bytes` from `first`, a place in the mapping, by reading the file. So no page enters this process's memory,
  // while one access to the mapping may bring in megabytes. Throws kModelFile.
  void read(const uint8_t* first, int64_t bytes, uint8_t* out) const;
  // Removes these bytes from this process's memory. They may stay in the page cache and come back when they are used.
  void drop(const uint8_t* first, int64_t bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  const uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace gemlet
