// The products of bf16 activations.
#pragma once

#include "kernels/matmul/panels.h"

namespace gemlet::kernels {
namespace {

struct Bf16Product {
  static constexpr int kRows = kRowTile;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  // Even and odd lines are summed apart, as in simd/tile.h.
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const uint8_t* x[R];
    for (int r = 0; r < R; ++r) x[r] = (const uint8_t*)a.x + (row + r) * a.x_stride;
    const uint8_t* w = panel + h0 * kLanes * 4;
    VF odd[R][H] = {};
    int64_t line = 0;
    for (; line + 2 <= a.cols / 2; line += 2, w += 128) {
      for (int h = 0; h < H; ++h) {
        const VI w0 = load_i32(w + h * kLanes * 4), w1 = load_i32(w + 64 + h * kLanes * 4);
        for (int r = 0; r < R; ++r) sums[r][h] = dot_bf16(sums[r][h], w0, splat_bytes(x[r] + 4 * line));
        for (int r = 0; r < R; ++r) odd[r][h] = dot_bf16(odd[r][h], w1, splat_bytes(x[r] + 4 * line + 4));
      }
    }
    for (int h = 0; h < H; ++h) {
      for (int r = 0; r < R; ++r) {
        if (line < a.cols / 2) {
          sums[r][h] = dot_bf16(sums[r][h], load_i32(w + h * kLanes * 4), splat_bytes(x[r] + 4 * line));
        }
        sums[r][h] += odd[r][h];
      }
    }
  }
};

// To nearest, ties to even; NaN stays NaN.
inline VI bf16_bits(VF x) {
  const VI bits = (VI)x;
  const VI rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? rounded : (bits >> 16) | 0x40;
}

}  // namespace

namespace GEMLET_TIER {

void round_bf16(const RoundArgs& a) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  for (int64_t c = 0; c < a.cols; c += kLanes) {
    const int64_t left = a.valid - c;
    const VF x = left >= kLanes ? load(a.x + c) : left > 0 ? load_some(a.x + c, left) : splat(0.0f);
    const Halves halves = __builtin_convertvector(bf16_bits(x), Halves);
    __builtin_memcpy(a.out + c / 32 * a.stride + c % 32 * 2, &halves, sizeof halves);
  }
}

void matmul_bf16_bf16(const MatmulArgs& a) { matmul<Bf16Product>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
