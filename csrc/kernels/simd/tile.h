// The inner loops of matmul and attention: R rows of x in f32 times H vectors of one panel (formats/formats.h: lines of
// 64 bytes, 16 outputs x 4 bytes of columns). Even and odd columns have separate sums. These two chains hide the
// latency of the FMA when R is 1. The order is the same for every R, so prefill and decode give the same bits.
#pragma once

#include "formats/layout.h"

namespace gemlet::kernels {
namespace {

constexpr int kLineFloats = kLineBytes / 4;
constexpr int kPanelVectors = kLineFloats / kLanes;

// How many vectors of a panel a tile of `rows` rows computes at once, so that it has at most kTileSums sums.
constexpr int vectors_at_once(int rows) {
  int vectors = kPanelVectors;
  while (vectors > 1 && rows * vectors > kTileSums) vectors /= 2;
  return vectors;
}

// sums[r][h] += sum over c in [0, cols) of x[r][c] * W[c], for the kLanes outputs from (h0 + h) * kLanes on.
template <int R, int H>
GEMLET_INLINE void tile_f32(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
  VF odd[R][H] = {};
  const float* w = (const float*)panel + h0 * kLanes;
  int64_t c = 0;
  for (; c + 2 <= cols; c += 2, w += 2 * kLineFloats) {
    for (int h = 0; h < H; ++h) {
      const VF w0 = load(w + h * kLanes), w1 = load(w + kLineFloats + h * kLanes);
      for (int r = 0; r < R; ++r) {
        sums[r][h] = multiply_add(sums[r][h], splat(x[r][c]), w0);
        odd[r][h] = multiply_add(odd[r][h], splat(x[r][c + 1]), w1);
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int r = 0; r < R; ++r) {
      if (c < cols) sums[r][h] = multiply_add(sums[r][h], splat(x[r][c]), load(w + h * kLanes));
      sums[r][h] += odd[r][h];
    }
  }
}

template <int R, int H>
GEMLET_INLINE void tile_bf16(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
  VF odd[R][H] = {};
  const uint8_t* w = panel + h0 * kLanes * 4;
  int64_t c = 0;
  for (; c + 2 <= cols; c += 2, w += kLineBytes) {
    for (int h = 0; h < H; ++h) {
      const VI pair = load_i32(w + h * kLanes * 4);  // low half: column c, high half: column c + 1
      const VF w0 = (VF)(pair << 16), w1 = (VF)(pair & (int32_t)0xffff0000);
      for (int r = 0; r < R; ++r) {
        sums[r][h] = multiply_add(sums[r][h], splat(x[r][c]), w0);
        odd[r][h] = multiply_add(odd[r][h], splat(x[r][c + 1]), w1);
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int r = 0; r < R; ++r) {
      if (c < cols) {
        sums[r][h] = multiply_add(sums[r][h], splat(x[r][c]), (VF)(load_i32(w + h * kLanes * 4) << 16));
      }
      sums[r][h] += odd[r][h];
    }
  }
}

struct F32Lines {
  static constexpr int64_t line_columns = 1;
  template <int R, int H>
  static GEMLET_INLINE void tile(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
    tile_f32<R, H>(x, panel, h0, cols, sums);
  }
};
struct Bf16Lines {
  static constexpr int64_t line_columns = 2;
  template <int R, int H>
  static GEMLET_INLINE void tile(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
    tile_bf16<R, H>(x, panel, h0, cols, sums);
  }
};

}  // namespace
}  // namespace gemlet::kernels
