// Attention of a few query rows that share one key/value head, over that head's cached blocks, with an online softmax:
//   s_t = q . k_t,  s_t <- softcap * tanh(s_t / softcap) if softcap > 0,  masked unless position - window < t <=
//   position out = sum_t e^(s_t - m) v_t / sum_t e^(s_t - m),  m = max_t s_t
// The query comes scaled and rotated. Softcap goes before the mask; the window counts the token itself; window 0 = no
// limit.
//
// A block holds the keys and values of kKvBlockTokens tokens, for one head stored as two packed matrices in the layout
// of formats/formats.h (lines of 16 outputs x 4 bytes), so that both products of attention are the tile of matmul:
//   K: 64 outputs (tokens) x head_dim columns, then V: head_dim outputs (padded to 16) x 64 columns (tokens).
#pragma once

#include <stdint.h>

namespace gemlet::kernels {

constexpr int64_t kKvBlockTokens = 64;
constexpr int64_t kMaxAttentionRows = 16;
constexpr int64_t kMaxHeadDim = 1024;

constexpr int64_t padded_head_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int64_t kv_key_bytes(int64_t head_dim, int64_t element) {
  return kKvBlockTokens * ((head_dim + 1) / 2 * 2) * element;
}
constexpr int64_t kv_head_bytes(int64_t head_dim, int64_t element) {
  return kv_key_bytes(head_dim, element) + kKvBlockTokens * padded_head_dim(head_dim) * element;
}
// floats of scratch for one call
constexpr int64_t attention_scratch(int64_t head_dim) {
  return kMaxAttentionRows * (kKvBlockTokens + padded_head_dim(head_dim));
}

struct AttentionArgs {
  const float* const* q;         // [rows] pointers to head_dim floats
  const int32_t* positions;      // [rows] absolute position of each query
  int64_t rows;                  // 1 .. kMaxAttentionRows
  int64_t head_dim;              // even
  const uint8_t* const* blocks;  // blocks[i] holds tokens [64 (first_block + i), + 64)
  int64_t first_block;
  int64_t head_offset;       // bytes from a block's start to this head's K
  int64_t kv_begin, kv_end;  // tokens to visit, kv_begin < kv_end
  int64_t window;            // 0 = unlimited
  float softcap;             // 0 = none
  float* const* out;         // [rows] pointers to head_dim floats
  float* max;                // [rows] or null. If given, out is left unnormalised, and m and the sum
  float* sum;                //   are written, so that partial results over several ranges can be merged.
  float* scratch;            // attention_scratch(head_dim) floats
};
using attention_f32_fn = void(const AttentionArgs&);   // f32 cache
using attention_bf16_fn = void(const AttentionArgs&);  // bf16 cache

// Writes one token's key and value (f32 [head_dim]) into its slot (0 .. 63) of a head in a block.
struct KvStoreArgs {
  const float* key;
  const float* value;
  int64_t head_dim;
  int64_t slot;
  uint8_t* head;  // the head's K in the block
};
using kv_store_f32_fn = void(const KvStoreArgs&);
using kv_store_bf16_fn = void(const KvStoreArgs&);

}  // namespace gemlet::kernels
