// Keys and values of one sequence, in reference-counted blocks of kKvBlockTokens tokens.
//
// There is one table of blocks per kind of layer (window, kv heads, head_dim); a block holds its tokens for all layers
// of the kind, layer after layer, head after head (layout of a head: kernels/attention/attention.h). Kinds with a
// sliding window drop blocks that no future token can see.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace gemlet {

// Rows that one forward pass should get at most; longer prompts come in chunks of this.
inline constexpr int64_t kChunkTokens = 512;

// Where each layer's cache lies; computed once per model.
struct KvLayout {
  struct Kind {
    int64_t window;       // 0 = full attention
    int64_t layer_bytes;  // one layer's heads in a block
    int64_t layers;
    int64_t peak_blocks;  // the most that a sequence as long as the context holds
    int64_t block_bytes() const { return layer_bytes * layers; }
  };
  struct Place {
    size_t kind;
    int64_t offset;  // bytes from a block's start
  };
  KvFormat format = KvFormat::kBf16;
  std::vector<Kind> kinds;
  std::vector<Place> layers;

  KvLayout() = default;
  KvLayout(const ModelConfig& config, KvFormat format);
  int64_t bytes_per_token(bool sliding) const;  // of all layers with / without a window
  int64_t peak_bytes() const;                   // the most that one sequence holds
};

class KvCache {
 public:
  KvCache(const KvLayout& layout, Backend& backend)
      : layout_(&layout), backend_(&backend), tables_(layout.kinds.size()) {}

  int64_t length() const { return length_; }
  int64_t bytes() const;

  // Makes room for `tokens` more. If it throws (no memory), the cache is as it was.
  void reserve(int64_t tokens);
  // The reserved tokens have been written: they count from now on, and blocks that fell out of every window are
  // dropped.
  void commit(int64_t tokens);

  // This layer's blocks. Valid until the next reserve or commit.
  KvView view(size_t layer) const;

 private:
  struct Table {
    int64_t first_block = 0;
    std::vector<std::shared_ptr<const uint8_t>> blocks;  // each keeps the slab that it lies in
    std::vector<const uint8_t*> pointers;
  };
  const KvLayout* layout_;
  Backend* backend_;
  std::vector<Table> tables_;
  int64_t length_ = 0;
};

}  // namespace gemlet
