// The list of the CUDA kernels and their arguments. The backend launches a kernel by its place in the list.
//
// All addresses are in the memory of the device. The arguments are passed by value, so they are plain structures with a
// fixed layout. Code for the device, the emulator and the backend include this header.
#pragma once

#include <stdint.h>

#include "formats/formats.h"

namespace gemlet::cuda {

// A packed matrix (formats/formats.h).
struct Weight {
  const uint8_t* data;
  int64_t rows, cols, panel_bytes;
  Format format;
};

// y [rows, weight.rows] = x [rows, weight.cols] * weight^T
struct MatmulArgs {
  Weight weight;
  const float* x;
  float* y;
  int64_t rows, y_stride;
  int32_t vectors;    // 1: rows of x can be read 16 bytes at a time
  const float* gate;  // null, or [weight.rows]: panels of 16 outputs whose gates are all 0 become 0
};

// out = clamp(round(x / scale), -128, 127) * scale. Rows of out are `stride` numbers apart. Rows of x are `dim` numbers
// apart, or `stride` if x is out.
struct RoundArgs {
  const float* x;
  float scale;
  int64_t dim, stride;
  float* out;
};

struct NormArgs {
  const float* x;
  const float* weight;  // null: all weights are 1
  float eps;
  int64_t dim;
  float* out;
};
struct GeluArgs {
  const float *gate, *up;
  int64_t gate_stride, up_stride, dim;
  float* out;
};
struct FactorArgs {  // for operations on `count` numbers
  const float* x;
  const float* vector;  // mul_rows: [dim]; scale_by: [1]
  float factor;
  int64_t count, dim;
  float* out;
};
struct RowArgs {  // for operations in which a block computes one row
  const float* x;
  float factor;
  int64_t dim;
  float* out;
};
struct EmbedArgs {
  Weight table;
  const int32_t* ids;
  float scale;
  float* out;
};
struct CopyArgs {
  const uint8_t* from;
  uint8_t* to;
  int64_t bytes;
  int32_t units;  // 1: both addresses are multiples of 16
};
struct GatherArgs {
  const float* x;
  const int32_t* rows;
  const float* weights;  // combine: [out rows, per_row]
  int64_t per_row, dim;
  float* out;
};
struct RouteArgs {
  const float *logits, *scale;
  int64_t experts, count;
  int32_t* ids;
  float* weights;
};
struct AltupArgs {
  const float *x, *activated, *modalities;
  const float* const* coefs;  // [rows]
  float input_scale;
  int64_t rows, streams, dim;
  float* out;
};
struct TableArgs {
  const float* values;  // [rows, dim]
  float table_scale, out_scale;
  int64_t count;
  float* x;
};
struct AnglesArgs {
  const float* frequencies;
  const int64_t* positions;
  int64_t frequency_count;
  float *cosines, *sines;
};

// The place in the cache for the key and the value of one row. `block` is the address of the layer's first head in the
// block that holds the row's token.
struct KvPlace {
  uint8_t* block;
  int64_t stride;  // bytes from one head to the next
  int64_t position;
};
struct RopeArgs {
  const KvPlace* places;  // [rows]
  float *q, *k, *v;
  const float *q_norm, *k_norm, *cosines, *sines;  // cosines and sines are null if nothing is rotated
  int64_t heads, kv_heads, dim, rope_parts;
  float query_scale, eps;
  int32_t v_norm;
  KvFormat kv_format;
};

// The tokens [begin, end) that a row attends to. blocks[first] is the block of the tokens from 64 * first_block on.
struct AttentionRow {
  int64_t begin, end;
  int64_t first, first_block;
  int64_t out_row;  // the row in q and out
};
struct AttentionBlock {
  const uint8_t* head;  // the first head of the layer
  int64_t stride;       // bytes from one head to the next
};
struct AttentionArgs {
  const AttentionRow* rows;
  const AttentionBlock* blocks;
  const float* q;
  float* out;
  float* partials;  // null, or for each row and head [splits, dim + 2]
  int64_t heads, kv_heads, dim, splits;
  int64_t pieces_each;  // pieces of one split
  float softcap;
};
struct MergeArgs {
  const AttentionRow* rows;
  const float* partials;
  float* out;
  int64_t heads, dim, splits;
};

// The operations of the towers for images and sound.
struct LayerNormArgs {
  const float *x, *weight, *bias;  // bias may be null
  float eps;
  int64_t dim;
  float* out;
};
struct PoolArgs {
  const float* x;
  int64_t cols, dim, cell;
  float* out;
};
struct ClampArgs {
  const float* x;
  float low, high;
  int64_t count;
  float* out;
};
struct UnfoldArgs {
  const float *x, *weight;  // depthwise: weight [kernel * kernel, channels]
  int64_t rows, cols, channels, kernel, stride, top, left, out_cols, first_row;
  float* out;
};
struct FrameArgs {
  float* x;  // [frames, size]
  const float* weight;
  double* sums;     // [frames]: first the sums, afterwards the means
  double* squares;  // [frames]: first the sums of squares, afterwards 1 / standard deviation
  float eps;
  int64_t frames, size, channels;
  int32_t second;  // 1: the sums are sums of squares
};
struct ConvolutionArgs {
  const float *x, *weight;
  int64_t taps, dim;
  float* out;
};
struct LocalArgs {
  const float *q, *k, *v, *relative;
  int64_t heads, head_dim, keys;
  float softcap;
  float* out;
};

// Every kernel once: X(name, its arguments).
#define GEMLET_CUDA_MATMUL_KERNELS(X, format) \
  X(matmul_##format##_1, MatmulArgs)          \
  X(matmul_##format##_2, MatmulArgs)          \
  X(matmul_##format##_4, MatmulArgs)          \
  X(matmul_##format##_8, MatmulArgs)
#define GEMLET_CUDA_ATTENTION_KERNELS(X, format) \
  X(attention_##format##_32, AttentionArgs)      \
  X(attention_##format##_64, AttentionArgs)      \
  X(attention_##format##_128, AttentionArgs)     \
  X(attention_##format##_256, AttentionArgs)     \
  X(attention_##format##_512, AttentionArgs)     \
  X(attention_##format##_1024, AttentionArgs)
// The formats are in the order of Format.
#define GEMLET_CUDA_KERNELS(X)           \
  GEMLET_CUDA_MATMUL_KERNELS(X, f32)     \
  GEMLET_CUDA_MATMUL_KERNELS(X, bf16)    \
  GEMLET_CUDA_MATMUL_KERNELS(X, bf12)    \
  GEMLET_CUDA_MATMUL_KERNELS(X, q8)      \
  GEMLET_CUDA_MATMUL_KERNELS(X, q6k)     \
  GEMLET_CUDA_MATMUL_KERNELS(X, q5k)     \
  GEMLET_CUDA_MATMUL_KERNELS(X, q5)      \
  GEMLET_CUDA_MATMUL_KERNELS(X, q4k)     \
  GEMLET_CUDA_MATMUL_KERNELS(X, q4)      \
  GEMLET_CUDA_MATMUL_KERNELS(X, r8)      \
  GEMLET_CUDA_MATMUL_KERNELS(X, r4)      \
  GEMLET_CUDA_MATMUL_KERNELS(X, r2)      \
  X(matmul_bf16_tiles, MatmulArgs)       \
  X(matmul_q8_tiles, MatmulArgs)         \
  X(matmul_q6k_tiles, MatmulArgs)        \
  X(matmul_q5k_tiles, MatmulArgs)        \
  X(matmul_q5_tiles, MatmulArgs)         \
  X(matmul_q4k_tiles, MatmulArgs)        \
  X(matmul_q4_tiles, MatmulArgs)         \
  GEMLET_CUDA_ATTENTION_KERNELS(X, f32)  \
  GEMLET_CUDA_ATTENTION_KERNELS(X, bf16) \
  GEMLET_CUDA_ATTENTION_KERNELS(X, int8) \
  X(attention_merge, MergeArgs)          \
  X(rope_and_store, RopeArgs)            \
  X(rope_angles, AnglesArgs)             \
  X(rms_norm, NormArgs)                  \
  X(rms_norm_add, NormArgs)              \
  X(add, FactorArgs)                     \
  X(gelu_mul, GeluArgs)                  \
  X(gaussian_topk, RowArgs)              \
  X(softcap, FactorArgs)                 \
  X(scale, FactorArgs)                   \
  X(scale_by, FactorArgs)                \
  X(mul_rows, FactorArgs)                \
  X(embed, EmbedArgs)                    \
  X(round_rows, RoundArgs)               \
  X(copy_bytes, CopyArgs)                \
  X(gather, GatherArgs)                  \
  X(combine, GatherArgs)                 \
  X(add_table, TableArgs)                \
  X(route, RouteArgs)                    \
  X(altup_predict, AltupArgs)            \
  X(altup_correct, AltupArgs)            \
  X(match_magnitude, RowArgs)            \
  X(layer_norm, LayerNormArgs)           \
  X(add_bias, FactorArgs)                \
  X(bias_gelu, FactorArgs)               \
  X(mean_pool, PoolArgs)                 \
  X(clamp, ClampArgs)                    \
  X(add_scaled, FactorArgs)              \
  X(silu, FactorArgs)                    \
  X(sigmoid_mul, FactorArgs)             \
  X(unfold, UnfoldArgs)                  \
  X(depthwise, UnfoldArgs)               \
  X(norm_relu, NormArgs)                 \
  X(frame_sums, FrameArgs)               \
  X(frame_totals, FrameArgs)             \
  X(frame_norm_relu, FrameArgs)          \
  X(causal_convolution, ConvolutionArgs) \
  X(local_attention, LocalArgs)

enum class Kernel : int {
#define GEMLET_DECLARE_KERNEL(name, args) name,
  GEMLET_CUDA_KERNELS(GEMLET_DECLARE_KERNEL)
#undef GEMLET_DECLARE_KERNEL
      kCount
};

constexpr int kProductRows = 64;  // rows and outputs that one block of threads computes in a product in tiles
constexpr int kTileOutputs = 64;
constexpr int kTileDepth = 64;               // columns of a step
constexpr int kTileStride = kTileDepth + 8;  // bf16 numbers from row to row in shared memory; avoids bank conflicts
constexpr int kTileSharedBytes = (kProductRows + kTileOutputs) * kTileStride * 2;

// The layout of this backend's KV cache. A block has 64 tokens. For each head, a block has first the keys as [head_dim
// / E] [64] [E], where E is how many numbers 16 bytes hold, and then the values as [64] [head_dim]. Keys and values are
// padded to 16 bytes. In an int8 cache, 64 scales of the keys and 64 scales of the values follow, in float32.
constexpr int64_t kv_padded(int64_t head_dim, int64_t element) {
  const int64_t unit = 16 / element;
  return (head_dim + unit - 1) / unit * unit;
}
constexpr int64_t kv_values_at(int64_t head_dim, int64_t element) {
  return kKvBlockTokens * kv_padded(head_dim, element) * element;
}
constexpr int64_t kv_scales_at(int64_t head_dim, int64_t element) { return 2 * kv_values_at(head_dim, element); }
constexpr int64_t kv_head_size(int64_t head_dim, int64_t element) {
  return kv_scales_at(head_dim, element) + (element == 1 ? 2 * kKvBlockTokens * 4 : 0);
}

}  // namespace gemlet::cuda
