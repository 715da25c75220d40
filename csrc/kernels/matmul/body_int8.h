// The products of int8 activations. A dots_*.h comes before it and says how bytes are multiplied.
#pragma once

#include "kernels/matmul/panels.h"

namespace gemlet::kernels {
namespace {

struct Q8Lines {
  static constexpr int64_t kBlockBytes = 512;
  using Dot = Q8Dot;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    for (int j = 0; j < 8; ++j) {
      for (int h = 0; h < H; ++h) {
        const VI w = load_i32(lines + j * 64 + h * kLanes * 4);
        for (int r = 0; r < R; ++r) dots[r][h] = Dot::add(dots[r][h], w, splat_bytes(x[r] + 4 * j));
      }
    }
  }
};
struct Q4Lines {
  static constexpr int64_t kBlockBytes = 256;
  using Dot = Q4Dot;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    for (int j = 0; j < 4; ++j) {
      for (int h = 0; h < H; ++h) {
        const VI w = load_i32(lines + j * 64 + h * kLanes * 4);
        const VI low = w & 0x0f0f0f0f, high = (w >> 4) & 0x0f0f0f0f;
        for (int r = 0; r < R; ++r) dots[r][h] = Dot::add(dots[r][h], low, splat_bytes(x[r] + 4 * j));
        for (int r = 0; r < R; ++r) dots[r][h] = Dot::add(dots[r][h], high, splat_bytes(x[r] + 16 + 4 * j));
      }
    }
  }
};

template <typename Lines>
struct Int8Product {
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const uint8_t* x[R];
    const float* scales[R];
    const int32_t* offsets[R];
    for (int r = 0; r < R; ++r) {
      x[r] = (const uint8_t*)a.x + (row + r) * a.x_stride;
      scales[r] = (const float*)(x[r] + a.cols);
      offsets[r] = (const int32_t*)(x[r] + a.cols + a.cols / kQuantBlock * 4);
    }
    const int64_t blocks = a.cols / kQuantBlock;
    for (int64_t b = 0; b < blocks; b += 2, panel += kScaleLine + 2 * Lines::kBlockBytes) {
      for (int64_t half = 0; half < 2; ++half) {
        VI dots[R][H];
        for (int r = 0; r < R; ++r) {
          for (int h = 0; h < H; ++h) dots[r][h] = Lines::Dot::start(offsets[r][b + half]);
        }
        Lines::template dot<R, H>(panel + kScaleLine + half * Lines::kBlockBytes + h0 * kLanes * 4, x, dots);
        for (int h = 0; h < H; ++h) {
          const VF weight_scale = load_f16(panel + half * 32 + (h0 + h) * kLanes * 2);
          for (int r = 0; r < R; ++r) {
            const VI total = Lines::Dot::total(dots[r][h], offsets[r][b + half]);
            sums[r][h] += to_float(total) * (weight_scale * scales[r][b + half]);
          }
        }
        for (int r = 0; r < R; ++r) x[r] += kQuantBlock;
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
