// Matrix products against packed weights: y[r][o] = sum_c x[r][c] * W[o][c].
//
// A kernel <op>_<activation>_<weight> computes consecutive panels of 16 outputs for all rows of x, on the calling
// thread. The order in which it sums does not depend on the number of rows or on which panels it is given, so results
// do not depend on how work is split. The packed layouts are defined in formats/formats.h.
#pragma once

#include <stdint.h>

namespace gemlet::kernels {

struct MatmulArgs {
  const void* x;          // f32 kernels: float [rows][cols]; i8 kernels: rows made by quantize_i8
  int64_t x_stride;       // bytes from one row of x to the next
  int64_t rows;           // >= 1
  const uint8_t* panels;  // first panel, 64-byte aligned
  int64_t panel_stride;   // bytes per panel
  int64_t cols;           // columns; i8 kernels: padded to a multiple of 64
  float* y;               // [rows][outputs], first output of the first panel
  int64_t y_stride;       // floats from one row of y to the next
  int64_t outputs;        // outputs to write: the last panel may have fewer than 16
};
using matmul_f32_f32_fn = void(const MatmulArgs&);   // f32 activations, f32 weights
using matmul_f32_bf16_fn = void(const MatmulArgs&);  // f32 activations, bf16 weights
using matmul_i8_q8_fn = void(const MatmulArgs&);     // int8 activations, q8 weights
using matmul_i8_q4_fn = void(const MatmulArgs&);     // int8 activations, q4 weights

// int8 activations of one row: q int8 [cols], then scale f32 [cols / 32], then offset int32 [cols / 32].
//   scale = max|x| / 127 per block of 32, q = round(x / scale), offset = -zero_point * sum(q)
// A block whose max|x| is at most kZeroPeak becomes zeros; one that holds an infinity or a NaN has that as its scale.
// The offset undoes the weights' storage as unsigned numbers (q4: + 8, q8: + 128).
struct QuantizeArgs {
  const float* x;      // [valid]
  int64_t valid;       // columns present; the rest up to `cols` is zero
  int64_t cols;        // multiple of 64
  int32_t zero_point;  // 8 for q4, 128 for q8
  uint8_t* out;        // quantized_row_bytes(cols) bytes
};
constexpr float kZeroPeak = 3.734e-37f;  // below it 127 / max|x| overflows
using quantize_i8_fn = void(const QuantizeArgs&);

constexpr int64_t quantized_row_bytes(int64_t cols) { return (cols + cols / 32 * 8 + 63) / 64 * 64; }

}  // namespace gemlet::kernels
