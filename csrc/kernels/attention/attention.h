// Attention of a few query rows that share one key/value head, over that head's cached blocks, with an online softmax:
//   s_t = q . k_t,  s_t <- softcap * tanh(s_t / softcap) if softcap > 0,
//   masked unless position - window < t <= position + ahead
//   out = sum_t e^(s_t - m) v_t / sum_t e^(s_t - m),  m = max_t s_t
// The query is already scaled and rotated. The softcap is applied before the mask. The window includes the token
// itself; window 0 means no limit. `ahead` 0 is causal attention.
//
// A block holds the keys and values of kKvBlockTokens tokens. For each head these are two packed matrices in the layout
// of formats/formats.h (lines of 16 outputs x 4 bytes), so both products of attention use the tiles of matmul:
//   K: 64 outputs (tokens) x head_dim columns, then V: head_dim outputs (padded to 16) x 64 columns (tokens).
// An int8 cache holds round(x / scale) + 128 as bytes, with scale = max|x| / 127 over one token's key or value of one
// head. Behind V are 64 scales of the keys and 64 scales of the values, f32.
#pragma once

#include <stdint.h>

#include "formats/layout.h"

namespace gemlet::kernels {

constexpr int64_t kMaxAttentionRows = 32;

constexpr int64_t padded_head_dim(int64_t head_dim) { return (head_dim + kPanelRows - 1) / kPanelRows * kPanelRows; }
// `element`: the bytes of one number, 4, 2 or 1. The columns of K are padded to whole lines.
constexpr int64_t kv_key_columns(int64_t head_dim, int64_t element) {
  const int64_t line = kUnitBytes / element;
  return (head_dim + line - 1) / line * line;
}
constexpr int64_t kv_key_bytes(int64_t head_dim, int64_t element) {
  return kKvBlockTokens * kv_key_columns(head_dim, element) * element;
}
constexpr int64_t kv_value_bytes(int64_t head_dim, int64_t element) {
  return kKvBlockTokens * padded_head_dim(head_dim) * element;
}
constexpr int64_t kv_scale_bytes(int64_t element) { return element == 1 ? 2 * kKvBlockTokens * 4 : 0; }
constexpr int64_t kv_head_bytes(int64_t head_dim, int64_t element) {
  return kv_key_bytes(head_dim, element) + kv_value_bytes(head_dim, element) + kv_scale_bytes(element);
}
// Floats of scratch for one call: for each row its scores, its result, the result of the pieces before, and its query
// and weights in the form that the products need; and the values of a block.
constexpr int64_t attention_scratch(int64_t head_dim) {
  return kMaxAttentionRows * (2 * kKvBlockTokens + 3 * padded_head_dim(head_dim)) +
         kKvBlockTokens * padded_head_dim(head_dim);
}

// Attention is computed in pieces of this many tokens, from multiples of it on. The results of the pieces are added one
// after the other, each scaled to the largest score so far. So a row's result is the same bits, whether one call reads
// all pieces or each piece is a call of its own.
constexpr int64_t kPieceTokens = 4 * kKvBlockTokens;

// Adds the result of a piece (`from`: out [head_dim], its largest score m and sum) to that of the pieces before.
void add_piece(const float* from, float from_max, float from_sum, int64_t head_dim, float* to, float& max, float& sum);

struct AttentionArgs {
  const float* const* q;         // [rows] pointers to head_dim floats
  const int32_t* positions;      // [rows] the absolute position of each query
  int64_t rows;                  // 1 .. kMaxAttentionRows
  int64_t head_dim;              // even
  const uint8_t* const* blocks;  // blocks[i]: this head's tokens [64 * (first_block + i), + 64)
  int64_t first_block;
  int64_t kv_begin, kv_end;  // the tokens to read, kv_begin < kv_end
  int64_t window;            // 0: no limit
  int64_t ahead;             // how many tokens after its own a query sees
  float softcap;             // 0 = none
  float* const* out;         // [rows] pointers to head_dim floats
  float* max;                // [rows], or null. If given, `out` is not divided by the sum, and m and the sum are
  float* sum;                //   written here, so that results over several ranges of tokens can be merged
  float* scratch;            // attention_scratch(head_dim) floats
};
using attention_f32_fn = void(const AttentionArgs&);   // f32 cache
using attention_bf16_fn = void(const AttentionArgs&);  // bf16 cache
using attention_int8_fn = void(const AttentionArgs&);  // int8 cache; queries and weights are rounded to 16 bits

// In an int8 cache a key or value whose max|x| is at most this becomes zeros. One with an infinity or a NaN has that as
// its scale.
constexpr float kZeroKvPeak = 1e-33f;

// How many slots share the 4-byte units of V. Storing reads and writes whole units, so two threads may not store tokens
// of the same unit (slot / kv_slots_together) at the same time.
constexpr int64_t kv_slots_together(int64_t element_bytes) { return kUnitBytes / element_bytes; }

// Writes one token's key and value (f32 [head_dim]) into its slot (0 to 63) of one head of a block.
struct KvStoreArgs {
  const float* key;
  const float* value;
  int64_t head_dim;
  int64_t slot;
  uint8_t* head;  // the head's K in the block
};
using kv_store_f32_fn = void(const KvStoreArgs&);
using kv_store_bf16_fn = void(const KvStoreArgs&);
using kv_store_int8_fn = void(const KvStoreArgs&);

}  // namespace gemlet::kernels
