// The keys and values of a block of a text as bytes in a file.
//
//   header                 what the bytes belong to, and their sizes
//   uint64 [kinds]         the checksum of each kind of layer
//   int32 [numbers]        the text up to the end of the block (text_key.h); then zeros up to a multiple of 8 bytes
//   for each kind that is there: its heads, as they lie in the cache
//
// Everything is checked before it is used, and a record that does not match counts as absent. All tokens are compared,
// so that two texts are never taken for the same.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/text_key.h"
#include "model/kv_blocks.h"

namespace gemlet {

// The facts on which keys and values depend besides the tokens. The digest of a model covers weights, formats and
// kernels.
struct KvOwner {
  Digest model = {}, adapter = {};  // adapter: zeros for none
  uint64_t salt = 0;
};

// `numbers` end with the 1 to 64 tokens of the block.
std::vector<uint8_t> encode_record(KvPool& pool, const KvOwner& owner, std::span<const int32_t> numbers,
                                   const std::vector<KvBlockRef>& blocks);

class KvRecord {
 public:
  // The record at byte `at` of a file of `file_bytes`. Empty if there is no record of this owner.
  static std::optional<KvRecord> open(int descriptor, int64_t at, int64_t file_bytes, const KvPool& pool,
                                      const KvOwner& owner);

  std::span<const int32_t> numbers() const { return numbers_; }
  // The numbers before the block, and those of the block.
  std::span<const int32_t> before() const;
  std::span<const int32_t> own_numbers() const { return numbers().subspan(before().size()); }
  int64_t bytes() const { return bytes_; }  // its size in the file
  bool has(size_t kind) const { return (present_ >> kind & 1) != 0; }

  // Reads the blocks of the kinds `wanted` that are there into new ones. False if the bytes are not those that were
  // written. Throws kMemory.
  bool read(int descriptor, const std::vector<bool>& wanted, KvPool& pool, std::vector<KvBlockRef>& blocks) const;

 private:
  std::vector<int32_t> numbers_;
  std::vector<uint64_t> sums_;
  uint64_t present_ = 0;
  int64_t payload_at_ = 0, bytes_ = 0;
};

// Writes all bytes at the end of an open file. Returns false if the disk is full or fails.
bool write_fully(int descriptor, std::span<const uint8_t> bytes);

}  // namespace gemlet
