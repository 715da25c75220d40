// Products with weights that have one scale for a row (r8, r4, r2), on every tier with vectors. A dots_*.h or a header
// of Arm is included before and defines BitsDot and ByteDot, which multiply unsigned weights of up to 6 and of 8 bits
// by any bytes.
#pragma once

#include "kernels/matmul/panels.h"
#include "kernels/matmul/row_parts.h"
#include "kernels/matmul/row_pointers.h"

namespace gemlet::kernels {
namespace {

template <typename Rows>
struct DotOf {
  using Type = BitsDot;
};
template <>
struct DotOf<EightBitRows> {
  using Type = ByteDot;
};

template <typename Rows>
struct StaticProduct {
  static constexpr int kRows = kBitsRows;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const uint8_t* const first = (const uint8_t*)a.x + row * a.x_stride;
    RowPointers<R> x(first, a.x_stride), ends(first + a.cols, a.x_stride);
    using Dot = typename DotOf<Rows>::Type;
    constexpr int32_t kZero = requires { Dot::kSubtractsZero; } ? 0 : Rows::kZero;
    VI dots[R][H];
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < H; ++h) dots[r][h] = splat_i32(-kZero * number_at<int32_t>(ends(r) + 4));
    }
    const uint8_t* lines = panel + kRowScaleBytes + h0 * kLanes * 4;
    for (int64_t c = 0; c < a.cols; c += kSuperblock, lines += Rows::kBytes) {
      if (h0 == 0) fetch_ahead(lines, Rows::kBytes);
      for_columns<Dot, kSuperblockParts, Rows::column>([&](int part, auto add) GEMLET_INLINE_LAMBDA {
        for (int h = 0; h < H; ++h) {
          const VI w = Rows::weights(lines, part, h);
          for (int r = 0; r < R; ++r) dots[r][h] = add(dots[r][h], w, x(r));
        }
      });
      x.advance(kSuperblock);
    }
    for (int h = 0; h < H; ++h) {
      const VF scale = load((const float*)panel + (h0 + h) * kLanes);
      for (int r = 0; r < R; ++r) sums[r][h] = to_float(dots[r][h]) * (scale * number_at<float>(ends(r)));
    }
  }
};

template <typename Rows>
struct FloatRowsProduct {
  static constexpr int kRows = kRowTile;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    RowPointers<R> x((const uint8_t*)a.x + row * a.x_stride, a.x_stride);
    const uint8_t* lines = panel + kRowScaleBytes + h0 * kLanes * 4;
    VF even[R][H] = {}, odd[R][H] = {};
    float last[8][kSuperblock];  // a copy of the last columns of x, because the padding of the weights has no x;
                                 // RowPointers needs 8 rows
    for (int64_t c = 0; c < a.cols; c += kSuperblock, lines += Rows::kBytes) {
      if (const int64_t left = a.cols - c; left < kSuperblock) {
        for (int r = 0; r < R; ++r) {
          for (int64_t i = 0; i < kSuperblock; ++i) last[r][i] = i < left ? number_at<float>(x(r) + 4 * i) : 0;
        }
        x = RowPointers<R>((const uint8_t*)last, sizeof last[0]);
      }
      if (h0 == 0) fetch_ahead(lines, Rows::kBytes);
      superblock<R, H>(x, lines, even, odd);
      x.advance(4 * kSuperblock);
    }
    for (int h = 0; h < H; ++h) {
      const VF scale = load((const float*)panel + (h0 + h) * kLanes);
      for (int r = 0; r < R; ++r) sums[r][h] = (even[r][h] + odd[r][h]) * scale;
    }
  }

 private:
  // The unrolled loops know at compile time which sums a column belongs to. A choice at run time would keep the sums in
  // memory.
  template <int R, int H>
  static GEMLET_INLINE void superblock(const RowPointers<R>& x, const uint8_t* lines, VF (&even)[R][H],
                                       VF (&odd)[R][H]) {
    for (int line = 0; line < kSuperblockParts; line += Rows::kPartsOfLine) {
#pragma GCC unroll 4
      for (int j = 0; j < Rows::kPartsOfLine; ++j) {
        const int first = 4 * Rows::column(line + j);  // the byte of this column
        VI four[H];
        for (int h = 0; h < H; ++h) four[h] = Rows::weights(lines, line + j, h);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          VF w[H];
          for (int h = 0; h < H; ++h) w[h] = to_float(((four[h] >> (8 * i)) & 255) - Rows::kZero);
          for (int r = 0; r < R; ++r) {
            const VF one = splat(number_at<float>(x(r) + first + 4 * i));
            for (int h = 0; h < H; ++h) {
              VF& sum = i % 2 == 0 ? even[r][h] : odd[r][h];
              sum = multiply_add(sum, one, w[h]);
            }
          }
        }
      }
    }
  }
};

}  // namespace

namespace GEMLET_TIER {

void matmul_s8_r8(const MatmulArgs& a) { matmul<StaticProduct<EightBitRows>>(a); }
void matmul_s8_r4(const MatmulArgs& a) { matmul<StaticProduct<FourBitRows>>(a); }
void matmul_s8_r2(const MatmulArgs& a) { matmul<StaticProduct<TwoBitRows>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
