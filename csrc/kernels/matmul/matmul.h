// Matrix products against packed weights: y[r][o] = sum_c x[r][c] * W[o][c].
//
// A kernel <op>_<activation>_<weight> computes consecutive panels of 16 outputs for all rows of x, on the calling
// thread. The order in which it sums depends neither on the number of rows nor on the panels it is given, so results do
// not depend on how work is split. formats/formats.h defines the packed layouts.
#pragma once

#include <stdint.h>

#include "formats/layout.h"

namespace gemlet::kernels {

// The form of a row of activations: float32, or the output of quantize_i8 or round_bf16. kTiles is bf16 with 16 rows
// interleaved as tiles: 32 columns of the first row, of the second and so on, then the next 32 columns. The x_stride of
// kTiles is a 16th of the bytes of a group of 16 rows, and the memory holds whole groups.
// kS8 is int8 with one scale for all rows, which training has fixed (round_s8).
enum class Activations : uint8_t { kF32, kI8, kBf16, kTiles, kS8 };

struct MatmulArgs {
  const void* x;          // rows in the kernel's form of activations
  int64_t x_stride;       // bytes from one row of x to the next
  int64_t rows;           // >= 1
  const uint8_t* panels;  // first panel, 64-byte aligned
  int64_t panel_stride;   // bytes per panel
  int64_t cols;           // columns, including the padding of the weights' format; i8 kernels: a multiple of 64
  float* y;               // [rows][outputs], from the first output of the first panel on
  int64_t y_stride;       // floats from one row of y to the next
  int64_t outputs;        // outputs to write; the last panel may have fewer than 16
  uint8_t* scratch;       // null, or expanded_bytes() bytes: bf12 kernels with many rows expand the panels to bf16 here
};
using matmul_fn = void(const MatmulArgs&);
using matmul_f32_f32_fn = matmul_fn;    // f32 activations, f32 weights
using matmul_f32_bf16_fn = matmul_fn;   // f32 activations, bf16 weights
using matmul_bf16_bf16_fn = matmul_fn;  // bf16 activations, bf16 weights; subnormal numbers may count as zero
// With bf12 weights, results are the same bits as with bf16 weights, except for the sign of a zero.
using matmul_f32_bf12_fn = matmul_fn;   // f32 activations, bf12 weights
using matmul_bf16_bf12_fn = matmul_fn;  // bf16 activations, bf12 weights
using matmul_i8_q8_fn = matmul_fn;      // int8 activations, q8 weights
using matmul_i8_q4_fn = matmul_fn;      // int8 activations, q4 weights
using matmul_i8_q5_fn = matmul_fn;      // int8 activations, and weights in q5 and the formats below
using matmul_i8_q4k_fn = matmul_fn;
using matmul_i8_q5k_fn = matmul_fn;
using matmul_i8_q6k_fn = matmul_fn;
using matmul_f32_w4a16_fn = matmul_fn;  // f32 activations, w4a16 weights: the same bits as with their values in f32
// Weights with one scale for a row. Integer sums of r4 and r2 are exact in all forms.
using matmul_f32_r8_fn = matmul_fn;  // f32 activations: sum(x q) * scale
using matmul_f32_r4_fn = matmul_fn;
using matmul_f32_r2_fn = matmul_fn;
using matmul_s8_r8_fn = matmul_fn;  // kS8 activations: sum(integers of x * q) * (scale of the weights * scale of x)
using matmul_s8_r4_fn = matmul_fn;
using matmul_s8_r2_fn = matmul_fn;
// bf16 activations in tiles; weights are rounded to bf16; subnormal numbers may count as zero
using matmul_tiles_bf16_fn = matmul_fn;
using matmul_tiles_bf12_fn = matmul_fn;
using matmul_tiles_q8_fn = matmul_fn;
using matmul_tiles_q4_fn = matmul_fn;
using matmul_tiles_q5_fn = matmul_fn;
using matmul_tiles_q4k_fn = matmul_fn;
using matmul_tiles_q5k_fn = matmul_fn;
using matmul_tiles_q6k_fn = matmul_fn;
// kS8 activations with many rows. The results are the same bits as those of the kernels without "tiles".
using matmul_s8_tiles_r8_fn = matmul_fn;
using matmul_s8_tiles_r4_fn = matmul_fn;
using matmul_s8_tiles_r2_fn = matmul_fn;
// The bytes of bf12 panels that are expanded to bf16, with columns padded to a multiple of 8.
constexpr int64_t expanded_bytes(int64_t outputs, int64_t cols) {
  return (outputs + kPanelRows - 1) / kPanelRows * (bf12_superblocks(cols) * kBf12ExpandedBytes);
}
// The least number of rows for which a matrix unit is faster than vectors (benchmarks/SPEED.md). kLeastTileRows is for
// weights that are unpacked to bytes, kLeastExpandedRows for weights that are expanded to bf16.
constexpr int64_t kLeastTileRows = 16;
constexpr int64_t kLeastExpandedRows = 24;

// int8 activations of one row: q int8 [cols], then scale f32 [cols / 32], then offset int32 [cols / 32].
//   q = round(x / scale) per block of 32, offset = -zero_point * sum(q)
// The offset compensates for the weights, which are stored as unsigned numbers (q4: + 8, q8: + 128). For q4k and q5k
// zero_point is 1, because kernels multiply the minimum by -sum(q). A scale of q6k is for 16 columns, so its offset has
// two numbers of 16 bits: -sum(q) of the first 16 columns in the low half, and of the other columns in the high half.
// The scale depends on the format of the weights:
//   all but q4
//       max|x| / 127. A block whose max|x| is at most kZeroPeak becomes zeros. A block with an infinity or a NaN has
//       this infinity or NaN as its scale.
//   q4  The least power of two, from 2^-64 on, that keeps |q| <= 127. Kernels add its exponent to the scale of the
//       weights. This saves one of ten operations per block on the execution ports that multiply. The loss of
//       precision is small compared to the loss from weights in four bits. A row with an |x| of 2^100 or more has NaN
//       as its first scale.
struct QuantizeArgs {
  const float* x;      // [valid]
  int64_t valid;       // columns that exist; the others, up to `cols`, are zero
  int64_t cols;        // multiple of 64
  int32_t zero_point;  // 8 for q4, 16 for q5, 128 for q8, 1 for q4k and q5k; not used for q6k
  bool power_of_two;   // the scales of q4
  bool halves;         // the offsets of q6k
  uint8_t* out;        // activation_row_bytes(kI8, cols)
};
constexpr float kZeroPeak = 3.734e-37f;  // below it 127 / max|x| overflows
constexpr uint32_t kLeastLostPeak = (127u + 100) << 23;
// Returns the bits of a block's scale for the bits of its max|x|. If max|x| is 127.5 times a power of two or more, the
// scale is the next power of two.
constexpr uint32_t power_scale_bits(uint32_t peak_bits) {
  const uint32_t power = (peak_bits + 0x10000) & 0x7f800000, least = (127u - 58) << 23;
  return (power > least ? power : least) - (6u << 23);
}
// Packs the offset for q6k from the sums of the two halves of a block.
constexpr int32_t packed_offsets(int32_t first, int32_t second) {
  return static_cast<int32_t>((static_cast<uint32_t>(-first) & 0xffffu) | static_cast<uint32_t>(-second) << 16);
}
// Unpacks the offset of half 0 or 1 of a block. The offset applies to each column of the half.
constexpr int32_t half_offset(int32_t packed, int half) {
  return half == 0 ? static_cast<int16_t>(packed & 0xffff) : packed >> 16;
}
using quantize_i8_fn = void(const QuantizeArgs&);

// int8 activations of one row with a given scale s > 0: q = clamp(round(x / s), -128, 127), ties to even. After q
// [cols] follow the scale f32, which is NaN if an x is NaN, and the sum of q, int32. An infinity becomes an end of the
// range.
struct StaticArgs {
  const float* x;  // [valid]
  int64_t valid;   // columns that exist; the others, up to `cols`, are zero
  int64_t cols;    // multiple of 64
  float scale;
  uint8_t* out;  // activation_row_bytes(kS8, cols)
};
using quantize_s8_fn = void(const StaticArgs&);

// Rounds x [count] in the same way, but to float32: out = clamp(round(x / s), -128, 127) * s with s = scale. NaN stays
// NaN. out may be x.
using round_s8_fn = void(const float* x, float scale, int64_t count, float* out);

// bf16 activations of one row: x rounded to nearest, ties to even; NaN stays NaN.
struct RoundArgs {
  const float* x;  // [valid]
  int64_t valid;   // columns that exist; the others, up to `cols`, are zero
  int64_t cols;    // multiple of 32
  int64_t stride;  // bytes from 32 columns to the next 32
  uint8_t* out;
};
using round_bf16_fn = void(const RoundArgs&);

// The x_stride of rows with `cols` columns. Rows of all forms but kF32 fill whole lines of 64 bytes.
constexpr int64_t activation_row_bytes(Activations form, int64_t cols) {
  if (form == Activations::kF32) return cols * 4;
  int64_t bytes = cols * 2;
  if (form == Activations::kI8) bytes = cols + cols / kBlock * 8;
  if (form == Activations::kS8) bytes = cols + 8;
  return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

// activation_offset() returns the byte at which `row` begins. activation_bytes() returns the bytes of all rows.
constexpr int64_t activation_offset(Activations form, int64_t row, int64_t stride) {
  return form == Activations::kTiles ? row / kTileRows * kTileRows * stride + row % kTileRows * kLineBytes
                                     : row * stride;
}
constexpr int64_t activation_bytes(Activations form, int64_t rows, int64_t stride) {
  return (form == Activations::kTiles ? (rows + kTileRows - 1) / kTileRows * kTileRows : rows) * stride;
}

}  // namespace gemlet::kernels
