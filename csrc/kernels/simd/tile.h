// The inner tiles of matmul and attention: R rows of f32 x against H vectors of one panel (formats/formats.h: lines of
// 64 bytes, 16 outputs x 4 bytes of columns). Even and odd columns are summed apart: two chains per sum hide the
// latency of the FMA when R is 1, and the order is the same for every R, so prefill and decode give the same bits.
#pragma once

namespace gemlet::kernels {
namespace {

constexpr int kPanelVectors = 16 / kLanes;

// How many of a panel's vectors a tile of R rows takes at once: as many as leave it with kTileSums sums.
constexpr int vectors_at_once(int rows) {
  int vectors = kPanelVectors;
  while (vectors > 1 && rows * vectors > kTileSums) vectors /= 2;
  return vectors;
}

// x[r][c] for c in [0, cols); sums[r][h] += sum_c x[r][c] * W[(h0 + h) * kLanes ..][c].
template <int R, int H>
GEMLET_INLINE void tile_f32(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
  VF odd[R][H] = {};
  const float* w = (const float*)panel + h0 * kLanes;
  int64_t c = 0;
  for (; c + 2 <= cols; c += 2, w += 32) {
    for (int h = 0; h < H; ++h) {
      const VF w0 = load(w + h * kLanes), w1 = load(w + 16 + h * kLanes);
      for (int r = 0; r < R; ++r) {
        sums[r][h] += x[r][c] * w0;
        odd[r][h] += x[r][c + 1] * w1;
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int r = 0; r < R; ++r) {
      if (c < cols) sums[r][h] += x[r][c] * load(w + h * kLanes);
      sums[r][h] += odd[r][h];
    }
  }
}

template <int R, int H>
GEMLET_INLINE void tile_bf16(const float* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
  VF odd[R][H] = {};
  const uint8_t* w = panel + h0 * kLanes * 4;
  int64_t c = 0;
  for (; c + 2 <= cols; c += 2, w += 64) {
    for (int h = 0; h < H; ++h) {
      const VI pair = load_i32(w + h * kLanes * 4);  // low half: column c, high half: column c + 1
      const VF w0 = (VF)(pair << 16), w1 = (VF)(pair & (int32_t)0xffff0000);
      for (int r = 0; r < R; ++r) {
        sums[r][h] += x[r][c] * w0;
        odd[r][h] += x[r][c + 1] * w1;
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int r = 0; r < R; ++r) {
      if (c < cols) sums[r][h] += x[r][c] * (VF)(load_i32(w + h * kLanes * 4) << 16);
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
