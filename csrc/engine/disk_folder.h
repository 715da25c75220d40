// A folder that keeps the keys and values of texts for other processes. Each block of a text is a file. The file name
// has two checksums: one of the text before the block, and one of the text up to the block's end. The file also
// contains the text itself (kv_record.h). There are 256 subfolders. All blocks that follow the same text are in the
// same subfolder, so a search lists only one.
//
// Any number of processes may use the folder. A file is written under a temporary name and then renamed, so readers
// never see half a file. A file counts as absent if it is damaged, if it is a link or a pipe, or if it belongs to
// another user or another text. Nothing is flushed to the disk. If a power cut damages a file, its checksum is wrong.
// If the files take more than the limit, the least recently used ones are removed. A block is never removed before the
// blocks that follow it.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/kv_record.h"

namespace gemlet {

// The name of a block. `before` is the checksum of the text before the block, and `whole` of the text up to the block's
// end. `numbers` is the count of numbers (text_key.h) up to the block's end.
struct BlockName {
  uint64_t before = 0, whole = 0;
  int64_t numbers = 0;
  std::string text() const;
  static bool parse(const std::string& text, BlockName& name);
};

class DiskFolder {
 public:
  // Throws kInvalidRequest if `path` is not a folder of this user, or if other users may write to it.
  DiskFolder(const std::string& path, int64_t most_bytes);
  ~DiskFolder();
  DiskFolder(const DiskFolder&) = delete;
  DiskFolder& operator=(const DiskFolder&) = delete;

  // The name of the block that follows the block `before`. `numbers` are the block's own numbers.
  static BlockName name_of(const KvOwner& owner, const BlockName& before, std::span<const int32_t> numbers);

  // Opens a block's file and sets `bytes` to its size. Returns -1 if there is no such regular file of this user.
  int open(const BlockName& name, int64_t& bytes) const;
  bool has(const BlockName& name, int64_t bytes) const;  // also marks the file as used
  // Returns false if the file could not be written.
  bool write(const BlockName& name, std::span<const uint8_t> bytes);
  void remove(const BlockName& name) const;
  void mark_used(int descriptor) const;
  // Counts the bytes of a block that was read, for count().
  void add_read(int64_t bytes) const { read_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  void count(int64_t& read, int64_t& written) const {
    read = read_bytes_.load(std::memory_order_relaxed);
    written = written_bytes_.load(std::memory_order_relaxed);
  }
  // The blocks whose name says that they follow a text with the checksum `before`.
  std::vector<BlockName> following(uint64_t before) const;

 private:
  struct Entry;
  class Part;  // one of the 256 subfolders, open
  void make_room();

  int descriptor_ = -1;
  const int64_t most_bytes_;
  mutable std::atomic<int64_t> read_bytes_{0}, written_bytes_{0};
  // Only the writing thread uses these:
  int64_t bytes_ = -1;  // the size of all files; -1: not counted yet
  int64_t writes_ = 0;  // the number of writes since the files were counted
};

}  // namespace gemlet
