// Products with int8 activations on 64-bit Arm. A lines_*.h is included before and defines how a block of 32 columns is
// multiplied: dot<R, H>(lines, x, dots) adds the products of the bytes x[r] and of vector h of the lines to dots[r][h].
// kNeedsOffset says that dot() takes the unsigned weights as they are stored. kPairs says that the lines_*.h has a tile
// of its own for several rows.
#pragma once

#include "kernels/matmul/panels.h"

namespace gemlet::kernels {
namespace {

template <typename Lines>
struct Int8Product {
  static constexpr int kRows = kRowTile;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    if constexpr (R > 1 && Lines::kPairs) return Lines::template pair_tile<R, H>(a, row, panel, h0, sums);
    const uint8_t* x[R];
    const float* scales[R];
    const int32_t* offsets[R];
    for (int r = 0; r < R; ++r) {
      x[r] = (const uint8_t*)a.x + (row + r) * a.x_stride;
      scales[r] = (const float*)(x[r] + a.cols);
      offsets[r] = (const int32_t*)(x[r] + a.cols + a.cols / kBlock * 4);
    }
    const int64_t blocks = a.cols / kBlock;
    for (int64_t b = 0; b < blocks; b += 2, panel += kScaleBytes + 2 * Lines::kBlockBytes) {
      for (int64_t half = 0; half < 2; ++half) {
        VI dots[R][H];
        for (int r = 0; r < R; ++r) {
          for (int h = 0; h < H; ++h) dots[r][h] = Lines::kNeedsOffset ? splat_i32(offsets[r][b + half]) : VI{};
        }
        Lines::template dot<R, H>(panel + kScaleBytes + half * Lines::kBlockBytes + h0 * kLanes * 4, x, dots);
        for (int h = 0; h < H; ++h) {
          const VF weight_scale = load_f16(panel + half * (kScaleBytes / 2) + (h0 + h) * kLanes * 2);
          for (int r = 0; r < R; ++r) {
            sums[r][h] = multiply_add(sums[r][h], to_float(dots[r][h]), weight_scale * scales[r][b + half]);
          }
        }
        for (int r = 0; r < R; ++r) x[r] += kBlock;
      }
    }
  }
};

}  // namespace

namespace GEMLET_TIER {

void matmul_i8_q8(const MatmulArgs& a) { matmul<Int8Product<Q8Lines>>(a); }
void matmul_i8_q4(const MatmulArgs& a) { matmul<Int8Product<Q4Lines>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
