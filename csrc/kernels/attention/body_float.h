// Attention over an f32 or bf16 cache with float32 queries and weights. It uses the tiles of the float matmuls.
#pragma once

#include "kernels/attention/body.h"
//
#include "kernels/simd/tile.h"

namespace gemlet::kernels {
namespace {

// dst[r][16 p to 16 p + 15] = (or +=, if `accumulate`) x[r] . panel p, for `panels` panels.
template <typename Lines, int R>
inline void rows_by_panels(const float* const* x, const uint8_t* matrix, int64_t panel_bytes, int64_t panels,
                           int64_t cols, float* dst, int64_t dst_stride, bool accumulate) {
  constexpr int H = vectors_at_once(R);
  for (int64_t p = 0; p < panels; ++p) {
    for (int h0 = 0; h0 < kPanelVectors; h0 += H) {
      VF sums[R][H];
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < H; ++h) {
          const float* at = dst + r * dst_stride + p * kPanelRows + (h0 + h) * kLanes;
          sums[r][h] = accumulate ? load(at) : VF{};
        }
      }
      Lines::template tile<R, H>(x, matrix + p * panel_bytes, h0, cols, sums);
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < H; ++h) store(dst + r * dst_stride + p * kPanelRows + (h0 + h) * kLanes, sums[r][h]);
      }
    }
  }
}

// An f32 or bf16 cache with float32 queries and weights.
template <typename Lines>
struct FloatCache {
  static constexpr int64_t kBits = 8 * kUnitBytes / Lines::line_columns, kElement = kBits / 8;
  const AttentionArgs& a;
  const float* const* q;
  int64_t key_panel, width;

  FloatCache(const AttentionArgs& args, float*) : a(args), q(args.q) {
    key_panel = kPanelRows * kv_key_columns(a.head_dim, kBits) * kElement;
    width = padded_head_dim(a.head_dim);
  }
  void scores(const uint8_t* keys, int64_t panel, int64_t panels, float* to) const {
    for_each_tile<Lines::kRows>(a.rows, [&]<int R>(int64_t r) {
      rows_by_panels<Lines, R>(q + r, keys + panel * key_panel, key_panel, panels, a.head_dim,
                               to + r * kKvBlockTokens + panel * kPanelRows, kKvBlockTokens, false);
    });
  }
  void weights(const uint8_t*, const float*, int64_t, int64_t) const {}
  void mix(const uint8_t* values, int64_t first, int64_t count, int64_t row, int64_t rows, const float* weights_of,
           float* out, const uint8_t*) const {
    const float* x[kMaxAttentionRows];
    for (int64_t r = 0; r < rows; ++r) x[r] = weights_of + (row + r) * kKvBlockTokens + first;
    for_each_tile<Lines::kRows>(rows, [&]<int R>(int64_t r) {
      rows_by_panels<Lines, R>(x + r, values + first / Lines::line_columns * kLineBytes,
                               kPanelRows * kKvBlockTokens * kElement, width / kPanelRows, count,
                               out + (row + r) * width, width, true);
    });
  }
};

}  // namespace

namespace GEMLET_TIER {

void attention_f32(const AttentionArgs& a) { attention<FloatCache<F32Lines>>(a); }
void attention_bf16(const AttentionArgs& a) { attention<FloatCache<Bf16Lines>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
