// Products with float32 activations.
#pragma once

#include "kernels/matmul/lines_bf12.h"
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

// For tile_bf12: even and odd columns have separate sums.
struct FloatColumns {
  static constexpr int64_t kBytes = 4;
  template <int R, int H>
  static GEMLET_INLINE void add(const uint8_t* const* x, int64_t at, int, VI line, int h, VF (&sums)[R][H],
                                VF (&odd)[R][H]) {
    const VF w0 = (VF)(line << 16), w1 = (VF)(line & (int32_t)0xffff0000);
    for (int r = 0; r < R; ++r) {
      float pair[2];
      __builtin_memcpy(pair, x[r] + at, sizeof pair);
      sums[r][h] += pair[0] * w0;
      odd[r][h] += pair[1] * w1;
    }
  }
};
struct Bf12Lines {
  template <int R, int H>
  static GEMLET_INLINE void tile(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
    const uint8_t* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = (const uint8_t*)x[r];
    tile_bf12<FloatColumns, R, H>(rows, panel, h0, cols, sums);
  }
};

}  // namespace

namespace GEMLET_TIER {

void matmul_f32_f32(const MatmulArgs& a) { matmul<FloatProduct<F32Lines>>(a); }
void matmul_f32_bf16(const MatmulArgs& a) { matmul<FloatProduct<Bf16Lines>>(a); }
void matmul_f32_bf12(const MatmulArgs& a) {
  a.scratch ? matmul_f32_bf16(expanded(a)) : matmul<FloatProduct<Bf12Lines>>(a);
}

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
