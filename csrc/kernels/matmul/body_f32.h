// The products of float32 activations.
#pragma once

#include "kernels/matmul/panels.h"

namespace gemlet::kernels {
namespace {

template <typename Lines>
struct FloatProduct {
  static constexpr int kRows = kRowTile;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const float* x[R];
    for (int r = 0; r < R; ++r) x[r] = (const float*)((const uint8_t*)a.x + (row + r) * a.x_stride);
    Lines::template tile<R, H>(x, panel, h0, a.cols, sums);
  }
};

}  // namespace

namespace GEMLET_TIER {

void matmul_f32_f32(const MatmulArgs& a) { matmul<FloatProduct<F32Lines>>(a); }
void matmul_f32_bf16(const MatmulArgs& a) { matmul<FloatProduct<Bf16Lines>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
