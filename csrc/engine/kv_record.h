// The file format of a block's keys and values:
//
//   header                 the owner of the record, and sizes
//   uint64 [kinds]         a checksum for each kind of layer
//   int32 [numbers]        the text up to the block's end (text_key.h); zeros fill up to a multiple of 8 bytes
//   for each kind that is present: the block's heads, in the layout of the cache
//
// A record is checked completely before it is used. A record that does not match counts as absent. All tokens are
// compared, not only checksums, so two different texts are never mixed up.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/text_key.h"
#include "model/kv_blocks.h"

namespace gemlet {

// Everything besides the tokens on which keys and values depend. The digest `model` covers weights, formats and
// kernels.
struct KvOwner {
  Digest model = {}, adapter = {};  // adapter: zeros if there is none
  uint64_t salt = 0;
};

// `numbers` is the text up to the block's end. The block has its last 1 to 64 tokens.
std::vector<uint8_t> encode_record(KvPool& pool, const KvOwner& owner, std::span<const int32_t> numbers,
                                   const std::vector<KvBlockRef>& blocks);

class KvRecord {
 public:
  // Opens the record at byte `at` of a file of `file_bytes` bytes. Returns nothing if no record of this owner is there.
  static std::optional<KvRecord> open(int descriptor, int64_t at, int64_t file_bytes, const KvPool& pool,
                                      const KvOwner& owner);

  std::span<const int32_t> numbers() const { return numbers_; }
  // The numbers of the text before the block, and the numbers of the block.
  std::span<const int32_t> before() const;
  std::span<const int32_t> own_numbers() const { return numbers().subspan(before().size()); }
  int64_t bytes() const { return bytes_; }  // size in the file
  bool has(size_t kind) const { return (present_ >> kind & 1) != 0; }

  // Reads the kinds in `wanted` that are present into new blocks. Returns false if their checksum is wrong. Throws
  // kMemory.
  bool read(int descriptor, const std::vector<bool>& wanted, KvPool& pool, std::vector<KvBlockRef>& blocks) const;

 private:
  std::vector<int32_t> numbers_;
  std::vector<uint64_t> sums_;
  uint64_t present_ = 0;
  int64_t payload_at_ = 0, bytes_ = 0;
};

// Appends all bytes to an open file. Returns false if the disk is full or fails.
bool write_fully(int descriptor, std::span<const uint8_t> bytes);

}  // namespace gemlet
