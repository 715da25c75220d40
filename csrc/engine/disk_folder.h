// A folder that keeps the keys and values of texts between processes. Each block of a text is a file. Its name has two
// checksums: of the text before the block, and of the text up to its end. Its content has the text itself
// (kv_record.h). Blocks that follow the same text are in the same one of 256 folders, so they are found without looking
// at all files.
//
// Any number of processes may use it. A file is written under another name and then renamed, so it appears as a whole
// or not at all. A file counts as absent if it is damaged, a link or a pipe, or if it belongs to another user or text.
// Nothing is flushed to the disk: what a power cut leaves half written fails its checksum. If the files take more than
// the limit, those that were not used for the longest time are removed. The blocks that follow a block are removed
// before it.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/kv_record.h"

namespace gemlet {

// The name of a block. `before` and `whole` are the checksums of its text without the block and with it. `numbers`
// counts the numbers of the text up to the end of the block.
struct BlockName {
  uint64_t before = 0, whole = 0;
  int64_t numbers = 0;
  std::string text() const;
  static bool parse(const std::string& text, BlockName& name);
};

class DiskFolder {
 public:
  // Throws kInvalidRequest if `path` is not a folder of this user, or if others may write to it.
  DiskFolder(const std::string& path, int64_t most_bytes);
  ~DiskFolder();
  DiskFolder(const DiskFolder&) = delete;
  DiskFolder& operator=(const DiskFolder&) = delete;

  // The name of the block that follows `before` and ends with these numbers of its text.
  static BlockName name_of(const KvOwner& owner, const BlockName& before, std::span<const int32_t> numbers);

  // An open file, or -1: not a regular file of this user. `bytes` is its size.
  int open(const BlockName& name, int64_t& bytes) const;
  bool has(const BlockName& name, int64_t bytes) const;  // and marks it as used
  // False if it could not be written.
  bool write(const BlockName& name, std::span<const uint8_t> bytes);
  void remove(const BlockName& name) const;
  void mark_used(int descriptor) const;
  // Counts the bytes of a block that was read.
  void add_read(int64_t bytes) const { read_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  void count(int64_t& read, int64_t& written) const {
    read = read_bytes_.load(std::memory_order_relaxed);
    written = written_bytes_.load(std::memory_order_relaxed);
  }
  // The blocks that may follow a text whose checksum is `before`.
  std::vector<BlockName> following(uint64_t before) const;

 private:
  struct Entry;
  class Part;  // one of the 256 folders, open
  void make_room();

  int descriptor_ = -1;
  const int64_t most_bytes_;
  mutable std::atomic<int64_t> read_bytes_{0}, written_bytes_{0};
  // Only the one thread that writes uses these.
  int64_t bytes_ = -1;  // size of all entries; -1: not counted yet
  int64_t writes_ = 0;  // writes since the entries were counted
};

}  // namespace gemlet
