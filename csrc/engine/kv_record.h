// The keys and values of a block of a text as bytes in a file.
//
//   header                 what the bytes belong to, and their sizes
//   uint64 [kinds]         the checksum of each kind of layer
//   int32 [tokens]         the text up to the end of the block; then zeros up to a multiple of 8 bytes
//   for each kind that is there: its heads, as they lie in the cache
//
// Everything is compared or checked before it is used: what is not as it has to be is not there. So are all tokens, so
// that two texts are never taken for the same.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/kv_blocks.h"

namespace gemlet {

using Digest = std::array<uint8_t, 32>;

// What keys and values depend on besides the tokens. The digest of a model covers weights, formats and kernels.
struct KvOwner {
  Digest model = {}, adapter = {};  // adapter: zeros for none
  uint64_t salt = 0;
};

// `ids` end with the 1 to 64 tokens of the block.
std::vector<uint8_t> encode_record(KvPool& pool, const KvOwner& owner, std::span<const int32_t> ids,
                                   const std::vector<KvBlockRef>& blocks);

class KvRecord {
 public:
  // The record at byte `at` of a file of `file_bytes`. Nothing if there is none of this owner.
  static std::optional<KvRecord> open(int descriptor, int64_t at, int64_t file_bytes, const KvPool& pool,
                                      const KvOwner& owner);

  const std::vector<int32_t>& ids() const { return ids_; }
  std::span<const int32_t> own_ids() const;  // those of the block
  int64_t bytes() const { return bytes_; }   // in the file
  bool has(size_t kind) const { return (present_ >> kind & 1) != 0; }

  // Reads the blocks of the kinds `wanted` that are there into new ones. False if the bytes are not those that were
  // written. Throws kMemory.
  bool read(int descriptor, const std::vector<bool>& wanted, KvPool& pool, std::vector<KvBlockRef>& blocks) const;

 private:
  std::vector<int32_t> ids_;
  std::vector<uint64_t> sums_;
  uint64_t present_ = 0;
  int64_t payload_at_ = 0, bytes_ = 0;
};

// All bytes at the end of an open file; false if the disk is full or fails.
bool write_fully(int descriptor, std::span<const uint8_t> bytes);

}  // namespace gemlet
