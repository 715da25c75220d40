// Products with int8 activations. A dots_*.h is included before and defines how bytes are multiplied.
#pragma once

#include "kernels/matmul/panels.h"
#include "kernels/matmul/row_pointers.h"

namespace gemlet::kernels {
namespace {

// The scales of one block of weights. times(x) multiplies them by the scale of x.
struct AnyScales {
  VF weights;
  explicit AnyScales(VF scales) : weights(scales) {}
  VF times(const uint8_t* x) const { return weights * number_at<float>(x); }
};
// The same if the scale of x is a power of two. Adding exponents then takes the place of the multiplication, and the
// execution ports that multiply stay free.
struct PowerScales {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(VF))));
  Bits weights;
  explicit PowerScales(VF scales) : weights((Bits)scales - 0x3f800000u) {}
  VF times(const uint8_t* x) const { return (VF)(weights + number_at<uint32_t>(x)); }
};

struct Q8Lines {
  static constexpr int64_t kBlockBytes = kQ8BlockBytes;
  using Dot = Q8Dot;
  using Scales = AnyScales;
  template <int R, int H, typename X>
  static void dot(const uint8_t* lines, const X& x, LineFetch& fetch, VI (&dots)[R][H]) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      fetch(lines + j * kLineBytes, j);
      VI w[H];
      for (int h = 0; h < H; ++h) w[h] = load_i32(lines + j * kLineBytes + h * kLanes * 4);
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < H; ++h) dots[r][h] = Dot::add(dots[r][h], w[h], x(r) + 4 * j);
      }
    }
  }
};
struct Q4Lines {
  static constexpr int64_t kBlockBytes = kQ4BlockBytes;
  using Dot = Q4Dot;
  using Scales = PowerScales;
  template <int R, int H, typename X>
  static void dot(const uint8_t* lines, const X& x, LineFetch& fetch, VI (&dots)[R][H]) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      fetch(lines + j * kLineBytes, j);
      VI low[H], high[H];
      for (int h = 0; h < H; ++h) {
        const VI w = load_i32(lines + j * kLineBytes + h * kLanes * 4);
        low[h] = w & 0x0f0f0f0f;
        high[h] = (w >> 4) & 0x0f0f0f0f;
      }
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < H; ++h) dots[r][h] = Dot::add(dots[r][h], low[h], x(r) + 4 * j);
      }
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < H; ++h) dots[r][h] = Dot::add(dots[r][h], high[h], x(r) + 16 + 4 * j);
      }
    }
  }
};

template <typename Lines>
struct Int8Product {
  static constexpr int kRows = kInt8Rows;
  static constexpr int vectors(int) { return kPanelVectors; }
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const int64_t blocks = a.cols / kBlock;
    const uint8_t* const first = (const uint8_t*)a.x + row * a.x_stride;
    RowPointers<R> x(first, a.x_stride), scale(first + a.cols, a.x_stride);
    RowPointers<R> offset(first + a.cols + blocks * 4, a.x_stride);
    LineFetch fetch(a, row, kRows, panel);
    float first_scales[R];
    for (int r = 0; r < R; ++r) first_scales[r] = number_at<float>(scale(r));
    for (int64_t b = 0; b < blocks; b += 2, panel += kScaleBytes + 2 * Lines::kBlockBytes) {
      fetch(panel, 0);
      for (int half = 0; half < 2; ++half) {
        VI dots[R][H];
        for (int r = 0; r < R; ++r) {
          for (int h = 0; h < H; ++h) dots[r][h] = Lines::Dot::start(number_at<int32_t>(offset(r)));
        }
        Lines::template dot<R, H>(panel + kScaleBytes + half * Lines::kBlockBytes + h0 * kLanes * 4, x, fetch, dots);
        for (int h = 0; h < H; ++h) {
          const typename Lines::Scales scales(load_f16(panel + half * (kScaleBytes / 2) + (h0 + h) * kLanes * 2));
          for (int r = 0; r < R; ++r) {
            const VI total = Lines::Dot::total(dots[r][h], number_at<int32_t>(offset(r)));
            sums[r][h] = multiply_add(sums[r][h], to_float(total), scales.times(scale(r)));
          }
        }
        x.advance(kBlock);
        scale.advance(4);
        offset.advance(4);
      }
    }
    for (int r = 0; r < R; ++r) {  // adding exponents does not propagate a NaN
      for (int h = 0; h < H && first_scales[r] != first_scales[r]; ++h) sums[r][h] = splat(first_scales[r]);
    }
  }
};

}  // namespace

namespace GEMLET_TIER {

void matmul_i8_q8(const MatmulArgs& a) { matmul<Int8Product<Q8Lines>>(a); }
void matmul_i8_q4(const MatmulArgs& a) { matmul<Int8Product<Q4Lines>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
