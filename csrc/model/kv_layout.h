// Assigns the keys and values of layers to blocks. The layout is computed once for each model.
//
// Layers of one kind (window, kv heads, head_dim) share their blocks: a block holds kKvBlockTokens tokens for every
// head of all layers of the kind. Layers of a bidirectional model, whose tokens come in one pass, take turns in the
// same place.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace gemlet {

struct KvLayout {
  struct Kind {
    int64_t window;      // 0 = full attention
    int64_t head_bytes;  // bytes of one head in a block
    int64_t layer_heads;
    int64_t layers;
    int64_t context_blocks;  // blocks of a sequence that fills the context, if none is dropped
    int64_t peak_blocks;     // the most blocks that one sequence holds at a time
    int64_t heads() const { return layer_heads * layers; }  // heads in a block
    int64_t layer_bytes() const { return head_bytes * layer_heads; }
    int64_t block_bytes() const { return head_bytes * heads(); }
    int64_t slab_blocks() const;  // the most blocks that are allocated at once
    // The oldest token that the next token sees, in a sequence of `length` tokens.
    int64_t oldest_seen(int64_t length) const { return window == 0 ? 0 : std::max<int64_t>(0, length - window + 1); }
  };
  struct Place {
    size_t kind;
    int64_t first_head;  // the index of the layer's first head in a block
  };

  KvLayout(const ModelConfig& config, KvFormat kv_format, const Backend& backend);
  int64_t bytes_per_token(bool sliding) const;  // for all layers with a window, or for all others
  int64_t bytes_of(int64_t tokens) const;       // bytes of a sequence with this many tokens
  int64_t peak_bytes() const;                   // the most bytes of one sequence, or of a pass over texts

  KvFormat format;
  int64_t texts_blocks = 0;  // blocks for the texts in one pass of a bidirectional model
  std::vector<Kind> kinds;
  std::vector<Place> layers;
};

}  // namespace gemlet
