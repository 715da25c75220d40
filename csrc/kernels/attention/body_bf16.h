// Attention over a bf16 cache. Queries and weights are rounded to bf16.
#pragma once

#include "kernels/attention/body.h"
//
#include "kernels/simd/tile_bf16.h"

namespace gemlet::kernels {
namespace {

inline void round_row(const float* x, int64_t count, uint16_t* out) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    const Halves halves =
        __builtin_convertvector(bf16_bits(left >= kLanes ? load(x + i) : load_some(x + i, left)), Halves);
    __builtin_memcpy(out + i, &halves, sizeof halves);
  }
}

struct Bf16Cache {
  static constexpr int64_t kBits = 16;
  const AttentionArgs& a;
  int64_t width;
  uint16_t *q, *p;  // [rows, width] and [rows, kKvBlockTokens]

  Bf16Cache(const AttentionArgs& args, float* scratch) : a(args), width(padded_head_dim(a.head_dim)) {
    q = (uint16_t*)scratch;
    p = q + a.rows * width;
    for (int64_t r = 0; r < a.rows; ++r) round_row(a.q[r], a.head_dim, q + r * width);
  }
  void scores(const uint8_t* keys, int64_t panel, int64_t panels, float* to) const {
    for_each_tile<kRowTile>(a.rows, [&]<int R>(int64_t row) {
      const uint8_t* x[R];
      for (int r = 0; r < R; ++r) x[r] = (const uint8_t*)(q + (row + r) * width);
      for (int64_t first = panel * kPanelRows; first < (panel + panels) * kPanelRows; first += kLanes) {
        VF sums[R][1] = {};
        const uint8_t* const lines = keys + first / kPanelRows * kPanelRows * 2 * a.head_dim;
        tile_pairs<R, 1>(x, lines, (int)(first % kPanelRows) / kLanes, a.head_dim, sums);
        for (int r = 0; r < R; ++r) store(to + (row + r) * kKvBlockTokens + first, sums[r][0]);
      }
    });
  }
  void weights(const uint8_t*, const float* scores, int64_t first, int64_t count) {
    for (int64_t at = first; at < a.rows * kKvBlockTokens; at += kKvBlockTokens) round_row(scores + at, count, p + at);
  }
  void mix(const uint8_t* values, int64_t first, int64_t count, int64_t row, int64_t rows, const float*, float* out,
           const uint8_t*) const {
    for_each_tile<kRowTile>(rows, [&]<int R>(int64_t tile) {
      const uint8_t* x[R];
      for (int r = 0; r < R; ++r) x[r] = (const uint8_t*)(p + (row + tile + r) * kKvBlockTokens + first);
      for (int64_t d = 0; d < width; d += kLanes) {
        float* const at = out + (row + tile) * width + d;
        VF sums[R][1];
        for (int r = 0; r < R; ++r) sums[r][0] = load(at + r * width);
        const uint8_t* const lines = values + d / kPanelRows * kPanelRows * 2 * kKvBlockTokens + first * kPanelRows * 2;
        tile_pairs<R, 1>(x, lines, (int)(d % kPanelRows) / kLanes, (count + 1) / 2 * 2, sums);
        for (int r = 0; r < R; ++r) store(at + r * width, sums[r][0]);
      }
    });
  }
};

}  // namespace

namespace GEMLET_TIER {

void attention_bf16(const AttentionArgs& a) { attention<Bf16Cache>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
