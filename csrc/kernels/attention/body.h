// The vector body of attention, compiled once per tier: block by block, scores of all rows against 64 keys (tile),
// softcap and mask, online softmax, then the weighted sum of the values (tile again). K and V of a block are read once
// for all rows.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/simd/vector.h"
//
#include "kernels/simd/tile.h"

namespace gemlet::kernels {
namespace {

constexpr float kMasked = -__builtin_inff();

// dst[r][16 * p ..] (+)= x[r] . panel p for `panels` panels, rows [row, row + R).
template <typename Lines, int R>
inline void rows_by_panels(const float* const* x, const uint8_t* matrix, int64_t panel_bytes, int64_t panels,
                           int64_t cols, float* dst, int64_t dst_stride, bool accumulate) {
  constexpr int H = vectors_at_once(R);
  for (int64_t p = 0; p < panels; ++p) {
    for (int h0 = 0; h0 < kPanelVectors; h0 += H) {
      VF sums[R][H];
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < H; ++h) {
          const float* at = dst + r * dst_stride + p * 16 + (h0 + h) * kLanes;
          sums[r][h] = accumulate ? load(at) : VF{};
        }
      }
      Lines::template tile<R, H>(x, matrix + p * panel_bytes, h0, cols, sums);
      for (int r = 0; r < R; ++r) {
        for (int h = 0; h < H; ++h) store(dst + r * dst_stride + p * 16 + (h0 + h) * kLanes, sums[r][h]);
      }
    }
  }
}

template <typename Lines, int R>
inline void product_tail(int64_t rows, const float* const* x, const uint8_t* matrix, int64_t panel_bytes,
                         int64_t panels, int64_t cols, float* dst, int64_t dst_stride, bool accumulate) {
  if (rows == R) {
    rows_by_panels<Lines, R>(x, matrix, panel_bytes, panels, cols, dst, dst_stride, accumulate);
  } else if constexpr (R > 1) {
    product_tail<Lines, R - 1>(rows, x, matrix, panel_bytes, panels, cols, dst, dst_stride, accumulate);
  }
}

template <typename Lines>
inline void product(int64_t rows, const float* const* x, const uint8_t* matrix, int64_t panel_bytes, int64_t panels,
                    int64_t cols, float* dst, int64_t dst_stride, bool accumulate) {
  int64_t r = 0;
  for (; r + kRowTile <= rows; r += kRowTile) {
    rows_by_panels<Lines, kRowTile>(x + r, matrix, panel_bytes, panels, cols, dst + r * dst_stride, dst_stride,
                                    accumulate);
  }
  if (r < rows) {
    product_tail<Lines, kRowTile>(rows - r, x + r, matrix, panel_bytes, panels, cols, dst + r * dst_stride, dst_stride,
                                  accumulate);
  }
}

template <typename Lines>
inline void attention(const AttentionArgs& a) {
  constexpr int64_t kElement = 4 / Lines::line_columns;
  const int64_t cols = (a.head_dim + 1) / 2 * 2;
  const int64_t width = padded_head_dim(a.head_dim);
  const int64_t key_panel = 16 * cols * kElement, value_panel = 16 * kKvBlockTokens * kElement;
  float* const scores = a.scratch;
  float* const out = a.scratch + kMaxAttentionRows * kKvBlockTokens;
  const float* score_rows[kMaxAttentionRows];
  float largest[kMaxAttentionRows], sum[kMaxAttentionRows];
  for (int64_t r = 0; r < a.rows; ++r) {
    score_rows[r] = scores + r * kKvBlockTokens;
    largest[r] = kMasked;
    sum[r] = 0.0f;
  }
  __builtin_memset(out, 0, (size_t)(a.rows * width) * sizeof(float));

  for (int64_t block = a.kv_begin / kKvBlockTokens; block * kKvBlockTokens < a.kv_end; ++block) {
    const uint8_t* keys = a.blocks[block - a.first_block] + a.head_offset;
    const uint8_t* values = keys + kv_key_bytes(a.head_dim, kElement);
    const int64_t first = block * kKvBlockTokens;
    const int64_t used = a.kv_end - first < kKvBlockTokens ? a.kv_end - first : kKvBlockTokens;
    const int64_t panels = (used + 15) / 16;
    product<Lines>(a.rows, a.q, keys, key_panel, panels, a.head_dim, scores, kKvBlockTokens, false);

    for (int64_t r = 0; r < a.rows; ++r) {
      float* row = scores + r * kKvBlockTokens;
      const int64_t position = a.positions[r];
      int64_t oldest = a.window > 0 ? position - a.window + 1 : 0;
      if (oldest < a.kv_begin) oldest = a.kv_begin;
      const int64_t newest = position < a.kv_end - 1 ? position : a.kv_end - 1;
      if (a.softcap > 0.0f) {
        for (int64_t i = 0; i < panels * 16; i += kLanes) {
          store(row + i, a.softcap * tanh(load(row + i) * (1.0f / a.softcap)));
        }
      }
      for (int64_t i = 0; i < oldest - first && i < panels * 16; ++i) row[i] = kMasked;
      for (int64_t i = newest - first + 1 > 0 ? newest - first + 1 : 0; i < panels * 16; ++i) row[i] = kMasked;
      VF peaks = load(row);
      for (int64_t i = kLanes; i < panels * 16; i += kLanes) peaks = max(peaks, load(row + i));
      const float peak = max_lanes(peaks);
      const float now = peak > largest[r] ? peak : largest[r];
      const VF shift = splat(now == kMasked ? 0.0f : now);
      VF sums = splat(0.0f);
      for (int64_t i = 0; i < panels * 16; i += kLanes) {
        const VF p = exp(load(row + i) - shift);
        store(row + i, p);
        sums += p;
      }
      if (now > largest[r]) {
        float lanes[kLanes];
        store(lanes, exp(splat(largest[r]) - shift));
        sum[r] *= lanes[0];
        for (int64_t i = 0; i < width; i += kLanes) store(out + r * width + i, load(out + r * width + i) * lanes[0]);
        largest[r] = now;
      }
      sum[r] += sum_lanes(sums);
    }
    product<Lines>(a.rows, score_rows, values, value_panel, width / 16, panels * 16, out, width, true);
  }

  for (int64_t r = 0; r < a.rows; ++r) {
    if (a.max) {
      a.max[r] = largest[r];
      a.sum[r] = sum[r];
    }
    const float scale = a.max || sum[r] == 0.0f ? 1.0f : 1.0f / sum[r];
    for (int64_t i = 0; i < width; i += kLanes) store(out + r * width + i, load(out + r * width + i) * scale);
    __builtin_memcpy(a.out[r], out + r * width, (size_t)a.head_dim * sizeof(float));
  }
}

}  // namespace

namespace GEMLET_TIER {

void attention_f32(const AttentionArgs& a) { attention<F32Lines>(a); }
void attention_bf16(const AttentionArgs& a) { attention<Bf16Lines>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
