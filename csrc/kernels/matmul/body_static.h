// Rounding with fixed scales, and products of float32 with weights that have one scale for a row.
#pragma once

#include "kernels/matmul/body_rows.h"

namespace gemlet::kernels {
namespace {

// Rounds x / scale to integers from -128 to 127. NaN stays NaN.
inline VF static_integers(VF x, float scale) {
  VF steps = x / scale;
  steps = select(steps < splat(-128.0f), splat(-128.0f), steps);
  steps = select(steps > splat(127.0f), splat(127.0f), steps);
  return (steps + 12582912.0f) - 12582912.0f;
}

}  // namespace

namespace GEMLET_TIER {

void quantize_s8(const StaticArgs& a) {
  VF lost = {};  // NaN in the lanes in which an x is NaN
  VI sums = {};
  for (int64_t c = 0; c < a.cols; c += kLanes) {
    const int64_t left = a.valid - c;
    const VF x = left >= kLanes ? load(a.x + c) : left > 0 ? load_some(a.x + c, left) : splat(0.0f);
    const VF q = static_integers(x, a.scale);
    lost += q;
    const VI integers = __builtin_convertvector(select(q == q, q, splat(0.0f)), VI);
    sums += integers;
    typedef int8_t Bytes __attribute__((vector_size(kLanes)));
    const Bytes bytes = __builtin_convertvector(integers, Bytes);
    __builtin_memcpy(a.out + c, &bytes, sizeof bytes);
  }
  const float total = sum_lanes(lost), scale = total == total ? a.scale : total;
  const int32_t sum = sum_lanes_i32(sums);
  __builtin_memcpy(a.out + a.cols, &scale, 4);
  __builtin_memcpy(a.out + a.cols + 4, &sum, 4);
}

void round_s8(const float* x, float scale, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, static_integers(load(x + i), scale) * scale);
  if (i < count) store_some(out + i, static_integers(load_some(x + i, count - i), scale) * scale, count - i);
}

void matmul_f32_r8(const MatmulArgs& a) { matmul<FloatRowsProduct<EightBitRows>>(a); }
void matmul_f32_r4(const MatmulArgs& a) { matmul<FloatRowsProduct<FourBitRows>>(a); }
void matmul_f32_r2(const MatmulArgs& a) { matmul<FloatRowsProduct<TwoBitRows>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
