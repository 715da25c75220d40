// Attention of a few query rows that share one key/value head, over that head's cached blocks, with an online softmax:
//   s_t = q . k_t,  s_t <- softcap * tanh(s_t / softcap) if softcap > 0,
//   masked unless position - window < t <= position + ahead
//   out = sum_t e^(s_t - m) v_t / sum_t e^(s_t - m),  m = max_t s_t
// The query is already scaled and rotated. The softcap is applied before the mask. The window includes the token
// itself; window 0 means no limit. `ahead` 0 is causal attention.
//
// A block holds the keys and values of kKvBlockTokens tokens. For each head a block has two packed matrices, K and V,
// in the layout of formats/formats.h (lines of 16 outputs x 4 bytes). So both products of attention use the tiles of
// matmul:
//   K: 64 outputs (tokens) x head_dim columns, then V: head_dim outputs (padded to 16) x 64 columns (tokens).
// An int8 cache holds round(x / scale) + 128 as bytes, with scale = max|x| / 127 over one token's key or value of one
// head. After V there are 64 scales of the keys and 64 scales of the values, in f32.
// An int4 cache has 128 scales as well. It stores a number x as the index i of the nearest level. Level i is scale * (2
// kInt4Levels[i] - 63), where scale = (root mean square of the key or value) / kInt4Unit. In the c-th unit of 4 bytes,
// the low halves of the bytes hold columns 8 c to 8 c + 3, and the high halves columns 8 c + 4 to 8 c + 7.
#pragma once

#include <stdint.h>

#include "formats/layout.h"

namespace gemlet::kernels {

constexpr int64_t kMaxAttentionRows = 32;

constexpr int64_t padded_head_dim(int64_t head_dim) { return (head_dim + kPanelRows - 1) / kPanelRows * kPanelRows; }
// `bits` is the size of a number: 32, 16, 8 or 4.
constexpr int64_t kv_line_columns(int64_t bits) { return 8 * kUnitBytes / bits; }
// The columns of K are padded to whole lines.
constexpr int64_t kv_key_columns(int64_t head_dim, int64_t bits) {
  const int64_t line = kv_line_columns(bits);
  return (head_dim + line - 1) / line * line;
}
constexpr int64_t kv_key_bytes(int64_t head_dim, int64_t bits) {
  return kKvBlockTokens * kv_key_columns(head_dim, bits) * bits / 8;
}
constexpr int64_t kv_value_bytes(int64_t head_dim, int64_t bits) {
  return kKvBlockTokens * padded_head_dim(head_dim) * bits / 8;
}
constexpr int64_t kv_scale_bytes(int64_t bits) { return bits <= 8 ? 2 * kKvBlockTokens * 4 : 0; }
constexpr int64_t kv_head_bytes(int64_t head_dim, int64_t bits) {
  return kv_key_bytes(head_dim, bits) + kv_value_bytes(head_dim, bits) + kv_scale_bytes(bits);
}
// The number of floats of scratch that one call needs. Each row has its scores, its result, the result of the earlier
// pieces, and its query and weights in the form that the products need. All rows share a copy of the values of one
// block.
constexpr int64_t attention_scratch(int64_t head_dim) {
  return kMaxAttentionRows * (2 * kKvBlockTokens + 3 * padded_head_dim(head_dim)) +
         kKvBlockTokens * padded_head_dim(head_dim);
}

// Adds the result of one piece of kPieceTokens tokens (`from` [head_dim], `from_max`, `from_sum`) to the result of the
// earlier pieces (`to` [head_dim], `max`, `sum`). The maxima are the largest scores m, and the sums are sums of e^(s -
// m).
void add_piece(const float* from, float from_max, float from_sum, int64_t head_dim, float* to, float& max, float& sum);

struct AttentionArgs {
  const float* const* q;         // [rows] pointers to head_dim floats
  const int32_t* positions;      // [rows] the absolute position of each query
  int64_t rows;                  // 1 .. kMaxAttentionRows
  int64_t head_dim;              // even
  const uint8_t* const* blocks;  // blocks[i] has this head's tokens [64 * (first_block + i), + 64)
  int64_t first_block;
  int64_t kv_begin, kv_end;  // the tokens to read, kv_begin < kv_end
  int64_t window;            // 0: no limit
  int64_t ahead;             // the number of later tokens that a query sees
  float softcap;             // 0 = none
  float* const* out;         // [rows] pointers to head_dim floats
  float* max;                // [rows], or null. If given, `out` is not divided by the sum, and m and the sum are
  float* sum;                //   written here, so that results over several ranges of tokens can be merged
  float* scratch;            // attention_scratch(head_dim) floats
};
using attention_f32_fn = void(const AttentionArgs&);   // f32 cache
using attention_bf16_fn = void(const AttentionArgs&);  // bf16 cache
using attention_int8_fn = void(const AttentionArgs&);  // int8 cache; queries and weights are rounded to 16 bits
using attention_int4_fn = void(const AttentionArgs&);  // int4 cache; the same

// An int8 or int4 cache stores a key or value as zeros if its max|x| is at most this number. If a key or value has an
// infinity or a NaN, its scale is not finite either.
constexpr float kZeroKvPeak = 1e-33f;

// The 16 levels with the least squared error for numbers of a normal distribution (Lloyd 1982, Max 1960), as integers.
// Level i is (2 kInt4Levels[i] - 63) / kInt4Unit standard deviations. 2 kInt4Levels[i] - 63 is an odd number from -63
// to 63.
constexpr uint8_t kInt4Levels[16] = {0, 8, 13, 17, 21, 24, 27, 30, 33, 36, 39, 42, 46, 50, 55, 63};
constexpr float kInt4Unit = 23.05f;
constexpr int kInt4Middle = 63;
// The border between levels i and i + 1, in units of the scale.
constexpr float int4_border(int i) { return (float)(kInt4Levels[i] + kInt4Levels[i + 1] - kInt4Middle); }

// The number of slots that share the 4-byte units of V. Storing reads and writes whole units, so two threads may not
// store tokens of the same unit (slot / kv_slots_together) at the same time.
constexpr int64_t kv_slots_together(int64_t bits) { return kv_line_columns(bits); }

// Writes one token's key and value (f32 [head_dim]) into its slot (0 to 63) of one head of a block.
struct KvStoreArgs {
  const float* key;
  const float* value;
  int64_t head_dim;
  int64_t slot;
  uint8_t* head;  // the first byte of the head's K in the block
};
using kv_store_f32_fn = void(const KvStoreArgs&);
using kv_store_bf16_fn = void(const KvStoreArgs&);
using kv_store_int8_fn = void(const KvStoreArgs&);
using kv_store_int4_fn = void(const KvStoreArgs&);

}  // namespace gemlet::kernels
