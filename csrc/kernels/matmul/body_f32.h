// Products with float32 activations.
#pragma once

#include "kernels/matmul/lines_bf12.h"
#include "kernels/matmul/panels.h"

namespace gemlet::kernels {
namespace {

template <typename Lines>
struct FloatProduct {
  static constexpr int kRows = Lines::kRows;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const float* x[R];
    for (int r = 0; r < R; ++r) x[r] = (const float*)((const uint8_t*)a.x + (row + r) * a.x_stride);
    Lines::template tile<R, H>(x, panel, h0, a.cols, sums);
  }
};

// Products with weights in w4a16, which are expanded in registers. They are added in the same order as products with
// weights in f32.
struct FourBitLines {
  static constexpr int kRows = kRowTile;
  template <int R, int H>
  static GEMLET_INLINE void tile(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
    VF odd[R][H] = {};
    int64_t c = 0;
    for (; c + kBlock <= cols; c += kBlock) columns<R, H>(x, panel, h0, c, (int)kBlock, sums, odd);
    if (c < cols) columns<R, H>(x, panel, h0, c, (int)(cols - c), sums, odd);
    for (int h = 0; h < H; ++h) {
      for (int r = 0; r < R; ++r) sums[r][h] += odd[r][h];
    }
  }

 private:
  // Adds the products of the first `count` columns of the block that begins at column c.
  template <int R, int H>
  static GEMLET_INLINE void columns(const float* const* x, const uint8_t* panel, int h0, int64_t c, int count,
                                    VF (&sums)[R][H], VF (&odd)[R][H]) {
    const uint8_t* const superblock = panel + c / kSuperblock * kQ4SuperblockBytes;
    const int64_t half = c / kBlock % 2;
    const uint8_t* const lines = superblock + kScaleBytes + half * kQ4BlockBytes;
    if (h0 == 0) fetch_ahead(lines, kQ4BlockBytes + kScaleBytes / 2);
    VF scale[H], zero[H];
    for (int h = 0; h < H; ++h) {
      scale[h] = load_f16(superblock + (half * kPanelRows + (h0 + h) * kLanes) * 2);
      zero[h] = scale[h] * (float)-kQ4Zero;
    }
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {  // four columns
      if (4 * k >= count) break;
      for (int h = 0; h < H; ++h) {
        const VI four = load_i32(lines + k % 4 * kLineBytes + (h0 + h) * kLanes * 4) >> (k / 4 * 4);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          if (4 * k + i >= count) break;
          const VF w = to_float((four >> (8 * i)) & 15) * scale[h] + zero[h];  // exact
          for (int r = 0; r < R; ++r) {
            VF& sum = i % 2 == 0 ? sums[r][h] : odd[r][h];
            sum = multiply_add(sum, splat(x[r][c + 4 * k + i]), w);
          }
        }
      }
    }
  }
};

// The products of tile_bf12() with x in float32. Even and odd columns have separate sums.
struct FloatColumns {
  static constexpr int64_t kBytes = 4;
  template <int R, int H>
  static GEMLET_INLINE void add(const uint8_t* const* x, int64_t at, int, VI line, int h, VF (&sums)[R][H],
                                VF (&odd)[R][H]) {
    const VF w0 = (VF)(line << 16), w1 = (VF)(line & (int32_t)0xffff0000);
    for (int r = 0; r < R; ++r) {
      float pair[2];
      __builtin_memcpy(pair, x[r] + at, sizeof pair);
      sums[r][h] = multiply_add(sums[r][h], splat(pair[0]), w0);
      odd[r][h] = multiply_add(odd[r][h], splat(pair[1]), w1);
    }
  }
};
struct Bf12Lines {
  static constexpr int kRows = kRowTile;
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
void matmul_f32_w4a16(const MatmulArgs& a) { matmul<FloatProduct<FourBitLines>>(a); }
void matmul_f32_bf12(const MatmulArgs& a) {
  a.scratch ? matmul_f32_bf16(expanded(a)) : matmul<FloatProduct<Bf12Lines>>(a);
}

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
