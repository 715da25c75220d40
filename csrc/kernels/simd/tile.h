// The inner loops of matmul and attention: R rows of x in f32 times H vectors of one panel (formats/formats.h: lines of
// 64 bytes, 16 outputs x 4 bytes of columns). Even and odd columns have separate sums. These two chains hide the
// latency of the FMA when R is 1. The order is the same for every R, so prefill and decode give the same bits.
//
// A tile of more than kRowTile rows keeps the sums of only one chain in registers. It computes all even columns first,
// and then all odd columns. So each number that is loaded is used in more products.
#pragma once

#include "formats/layout.h"

namespace gemlet::kernels {
namespace {

constexpr int kLineFloats = kLineBytes / 4;
constexpr int kPanelVectors = kLineFloats / kLanes;

// The number of vectors of a panel that a tile of `rows` rows computes at once. Up to kRowTile rows have at most
// kTileSums sums.
constexpr int vectors_at_once(int rows) {
  int vectors = kPanelVectors;
  if (rows > kRowTile) return vectors;
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
    if (h0 == 0) fetch_ahead((const uint8_t*)w, 2 * kLineBytes);
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
    if (h0 == 0) fetch_ahead(w, kLineBytes);
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

// sums[r][h] += sum over every second column c from kFirst on of x[r][c] * W[c]. `weights` points to vector h0 of the
// first line.
template <typename Lines, int kFirst, int R, int H>
GEMLET_INLINE void every_second(const float* const* x, const uint8_t* weights, int64_t cols, VF (&sums)[R][H]) {
  for (int64_t c = kFirst; c < cols; c += 2, weights += 2 / Lines::line_columns * kLineBytes) {
    VF w[H];
    for (int h = 0; h < H; ++h) w[h] = Lines::template column<kFirst>(weights + h * kLanes * 4);
    for (int r = 0; r < R; ++r) {
      const VF one = splat(x[r][c]);
      for (int h = 0; h < H; ++h) sums[r][h] = multiply_add(sums[r][h], one, w[h]);
    }
  }
}

template <typename Lines, int R, int H>
GEMLET_INLINE void tile_in_two_passes(const float* const* x, const uint8_t* panel, int h0, int64_t cols,
                                      VF (&sums)[R][H]) {
  float even[R][H][kLanes];
  every_second<Lines, 0>(x, panel + h0 * kLanes * 4, cols, sums);
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < H; ++h) {
      store(even[r][h], sums[r][h]);
      sums[r][h] = VF{};
    }
  }
  every_second<Lines, 1>(x, panel + h0 * kLanes * 4, cols, sums);
  for (int r = 0; r < R; ++r) {
    for (int h = 0; h < H; ++h) sums[r][h] = load(even[r][h]) + sums[r][h];
  }
}

struct F32Lines {
  static constexpr int64_t line_columns = 1;
  static constexpr int kRows = kManyRows;
  template <int R, int H>
  static GEMLET_INLINE void tile(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
    if constexpr (R > kRowTile) {
      tile_in_two_passes<F32Lines>(x, panel, h0, cols, sums);
    } else {
      tile_f32<R, H>(x, panel, h0, cols, sums);
    }
  }
  // Of two columns whose weights begin at w, returns the first (kOdd = 0) or the second (kOdd = 1).
  template <int kOdd>
  static GEMLET_INLINE VF column(const uint8_t* w) {
    return load((const float*)(w + kOdd * kLineBytes));
  }
};
struct Bf16Lines {
  static constexpr int64_t line_columns = 2;
  static constexpr int kRows = kManyRows;
  template <int R, int H>
  static GEMLET_INLINE void tile(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
    if constexpr (R > kRowTile) {
      tile_in_two_passes<Bf16Lines>(x, panel, h0, cols, sums);
    } else {
      tile_bf16<R, H>(x, panel, h0, cols, sums);
    }
  }
  template <int kOdd>
  static GEMLET_INLINE VF column(const uint8_t* w) {
    return kOdd ? (VF)(load_i32(w) & (int32_t)0xffff0000) : (VF)(load_i32(w) << 16);
  }
};

}  // namespace
}  // namespace gemlet::kernels
