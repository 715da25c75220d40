// Keys and values of one sequence, in reference-counted blocks of kKvBlockTokens tokens.
//
// There is one table of blocks per kind of layer (window, kv heads, head_dim); a block holds its tokens for every head
// of all layers of the kind (layout of a head: kernels/attention/attention.h). Blocks are allocated several at a time,
// as a slab in which the blocks of one head lie side by side: attention reads them as one long stretch of memory, which
// is a third faster than stretches of one block. Kinds with a sliding window drop blocks that no future token can see;
// a slab is given back with the last of its blocks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace gemlet {

// Rows that one forward pass should get at most; longer prompts come in chunks of this.
inline constexpr int64_t kChunkTokens = 512;

// Texts that go through one pass of a bidirectional model at most, kChunkTokens together but for a single longer one.
inline constexpr int64_t kPassTexts = 32;

// Where each layer's cache lies; computed once per model. Layers of a bidirectional model, whose tokens come in one
// pass, take turns in the same place.
struct KvLayout {
  struct Kind {
    int64_t window;      // 0 = full attention
    int64_t head_bytes;  // of one head in a block
    int64_t layer_heads;
    int64_t layers;
    int64_t context_blocks;  // of a sequence as long as the context, if it dropped none
    int64_t peak_blocks;     // the most that one holds at a time
    int64_t layer_bytes() const { return head_bytes * layer_heads; }
    int64_t block_bytes() const { return layer_bytes() * layers; }
    int64_t slab_blocks() const;  // the most that are allocated at once
    // The most that are in memory for a sequence: of its oldest slab, blocks that it has dropped as well.
    int64_t resident_blocks() const { return std::min(context_blocks, peak_blocks + slab_blocks() - 1); }
  };
  struct Place {
    size_t kind;
    size_t first_head;  // among the heads of all layers of the kind
  };
  KvFormat format = KvFormat::kBf16;
  int64_t texts_blocks = 0;  // of the texts of one pass of a bidirectional model
  std::vector<Kind> kinds;
  std::vector<Place> layers;
  // Bytes of the slabs of all caches of this layout.
  std::shared_ptr<std::atomic<int64_t>> resident = std::make_shared<std::atomic<int64_t>>(0);

  KvLayout() = default;
  KvLayout(const ModelConfig& config, KvFormat format);
  int64_t bytes_per_token(bool sliding) const;  // of all layers with / without a window
  int64_t peak_bytes() const;                   // the most that one sequence, or a pass over texts, has in memory
};

class KvCache {
 public:
  KvCache(const KvLayout& layout, Backend& backend);

  int64_t length() const { return length_; }
  int64_t bytes() const;  // of its slabs: all that it has in memory

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
    std::vector<std::shared_ptr<const AlignedBuffer>> slabs;  // of each block, the one that it lies in
    std::vector<std::vector<const uint8_t*>> heads;           // of each head of all layers, its part of each block
  };
  std::shared_ptr<const AlignedBuffer> make_slab(int64_t bytes);

  const KvLayout* layout_;
  Backend* backend_;
  std::vector<Table> tables_;
  int64_t length_ = 0;
};

}  // namespace gemlet
