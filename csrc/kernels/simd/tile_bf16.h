// The inner loop of bf16 products: R rows of x in bf16, two columns at a time, times H vectors of a bf16 panel. Even
// and odd lines have separate sums, as in tile.h.
#pragma once

#include "formats/layout.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

// `cols` is a multiple of 2.
template <int R, int H>
GEMLET_INLINE void tile_pairs(const uint8_t* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
  const uint8_t* w = panel + h0 * kLanes * 4;
  VF odd[R][H] = {};
  int64_t line = 0;
  for (; line + 2 <= cols / 2; line += 2, w += 2 * kLineBytes) {
    if (h0 == 0) fetch_ahead(w, 2 * kLineBytes);
    for (int h = 0; h < H; ++h) {
      const VI w0 = load_i32(w + h * kLanes * 4), w1 = load_i32(w + kLineBytes + h * kLanes * 4);
      for (int r = 0; r < R; ++r) sums[r][h] = dot_bf16(sums[r][h], w0, splat_bytes(x[r] + 4 * line));
      for (int r = 0; r < R; ++r) odd[r][h] = dot_bf16(odd[r][h], w1, splat_bytes(x[r] + 4 * line + 4));
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int r = 0; r < R; ++r) {
      if (line < cols / 2) {
        sums[r][h] = dot_bf16(sums[r][h], load_i32(w + h * kLanes * 4), splat_bytes(x[r] + 4 * line));
      }
      sums[r][h] += odd[r][h];
    }
  }
}

}  // namespace
}  // namespace gemlet::kernels
