// The vector body of attention, compiled once for each tier. Block by block: scores of all rows against 64 keys,
// softcap and mask, online softmax, then the weighted sum of the values. K and V of a block are read once for all rows.
//
// A class for each format of the cache (such as FloatCache in body_float.h) contains the code that depends on the
// format. `scores` has rows of kKvBlockTokens floats, `out` rows of padded_head_dim floats.
//   Cache(args, scratch)                 converts the queries to the form that its products need
//   scores(keys, panel, panels, scores)  computes the scores of all rows for `panels` panels of 16 keys
//   weights(keys, scores, first, count)  is called when `scores` holds the weights [first, first + count) of all rows
//   mix(values, first, count, row, rows, scores, out, next)
//                                        out += weights [first, first + count) . values, for `rows` rows from `row` on;
//                                        `next` is the data that will be read afterwards
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

constexpr float kMasked = -__builtin_inff();

// The tokens of a block that a row sees: [begin, end).
struct Sight {
  int64_t begin, end;
};

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Calls fn<R>(first row) for tiles of R rows that cover rows [0, rows). R is kRows, and less for the last tile.
template <int R, typename Fn>
inline void last_tile(int64_t row, int64_t rows, Fn fn) {
  if (rows == R) {
    fn.template operator()<R>(row);
  } else if constexpr (R > 1) {
    last_tile<R - 1>(row, rows, fn);
  }
}
template <int kRows, typename Fn>
inline void for_each_tile(int64_t rows, Fn fn) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) fn.template operator()<kRows>(row);
  if (row < rows) last_tile<kRows>(row, rows - row, fn);
}

// Whether all values are finite. A weight of 0 removes the value of a masked token only if that value is finite.
// Integers are always finite.
template <int64_t kBits>
inline bool all_finite(const uint8_t* values, int64_t head_dim) {
  VI bad = {};
  for (int64_t i = 0; i < kv_value_bytes(head_dim, kBits); i += (int64_t)sizeof(VI)) {
    const VI bits = load_i32(values + i);
    bad |= (bits & 0x7f800000) == 0x7f800000;
    if (kBits == 16) bad |= (bits & 0x7f80) == 0x7f80;
  }
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= bad[i];
  return any == 0;
}

// Copies the values, with zeros for the tokens that a row does not see.
template <int64_t kBits>
inline void hide(const uint8_t* values, int64_t head_dim, Sight sight, uint8_t* copy) {
  constexpr int64_t kElement = kBits / 8, kColumns = kv_line_columns(kBits);
  __builtin_memcpy(copy, values, (size_t)kv_value_bytes(head_dim, kBits));
  for (int64_t t = 0; t < kKvBlockTokens; ++t) {
    if (t >= sight.begin && t < sight.end) continue;
    for (int64_t d = 0; d < padded_head_dim(head_dim); ++d) {
      const int64_t line = d / kPanelRows * (kKvBlockTokens / kColumns) + t / kColumns;
      __builtin_memset(copy + line * kLineBytes + d % kPanelRows * kUnitBytes + t % kColumns * kElement, 0,
                       (size_t)kElement);
    }
  }
}

// Turns scores [0, count) of one row into weights e^(s - largest) and returns their sum.
inline float weigh(float* row, int64_t count, float largest) {
  const VF shift = splat(largest == kMasked ? 0.0f : largest);
  VF sums = splat(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const VF p = exp(load(row + i) - shift);
    store(row + i, p);
    sums += p;
  }
  return sum_lanes(sums);
}

// Sums over some of the tokens, for every row: the largest score, the sum of e^(score - largest), and the values with
// these weights.
struct Sums {
  float largest[kMaxAttentionRows], sum[kMaxAttentionRows];
  float* out;  // [rows, width]

  Sums(float* memory, int64_t rows, int64_t width) : out(memory) { clear(rows, width); }
  void clear(int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r) {
      largest[r] = kMasked;
      sum[r] = 0.0f;
    }
    __builtin_memset(out, 0, (size_t)(rows * width) * sizeof(float));
  }

  void add(const Sums& piece, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r) {
      add_piece(piece.out + r * width, piece.largest[r], piece.sum[r], width, out + r * width, largest[r], sum[r]);
    }
  }
};

template <typename Cache>
inline void attention(const AttentionArgs& a) {
  const int64_t width = padded_head_dim(a.head_dim);
  float* const scores = a.scratch;
  Sums piece(scores + kMaxAttentionRows * kKvBlockTokens, a.rows, width);
  Sums before(piece.out + kMaxAttentionRows * width, a.rows, width);
  float *const out = piece.out, *const largest = piece.largest, *const sum = piece.sum;
  uint8_t* const copy = (uint8_t*)(before.out + kMaxAttentionRows * width);
  Cache cache(a, (float*)copy + kKvBlockTokens * width);

  for (int64_t block = a.kv_begin / kKvBlockTokens; block * kKvBlockTokens < a.kv_end; ++block) {
    const uint8_t* keys = a.blocks[block - a.first_block];
    const uint8_t* values = keys + kv_key_bytes(a.head_dim, Cache::kBits);
    const int64_t first = block * kKvBlockTokens;
    if (first % kPieceTokens == 0 && first > a.kv_begin) {
      before.add(piece, a.rows, width);
      piece.clear(a.rows, width);
    }
    const int64_t used = clamp(a.kv_end - first, 0, kKvBlockTokens);
    const int64_t panel =
        clamp(a.kv_begin - first, 0, kKvBlockTokens) / kPanelRows;  // the first panel that any row may see
    const int64_t begin = panel * kPanelRows, end = (used + kPanelRows - 1) / kPanelRows * kPanelRows;
    cache.scores(keys, panel, end / kPanelRows - panel, scores);

    Sight sights[kMaxAttentionRows];
    bool hidden = false;  // whether some row does not see all values that are read: whole lines are read
    constexpr int64_t kColumns = kv_line_columns(Cache::kBits);
    const int64_t read = (used + kColumns - 1) / kColumns * kColumns;
    for (int64_t r = 0; r < a.rows; ++r) {
      float* row = scores + r * kKvBlockTokens;
      const int64_t position = a.positions[r];
      int64_t oldest = a.window > 0 ? position - a.window + 1 : 0;
      if (oldest < a.kv_begin) oldest = a.kv_begin;
      const Sight sight = {clamp(oldest - first, begin, end), clamp(position + a.ahead + 1 - first, begin, used)};
      sights[r] = sight;
      hidden |= sight.begin > begin || sight.end < read;
      if (a.softcap > 0.0f) {
        for (int64_t i = begin; i < end; i += kLanes) {
          store(row + i, a.softcap * tanh(load(row + i) * (1.0f / a.softcap)));
        }
      }
      for (int64_t i = begin; i < sight.begin; ++i) row[i] = kMasked;
      for (int64_t i = sight.end; i < end; ++i) row[i] = kMasked;
      VF peaks = load(row + begin);
      for (int64_t i = begin + kLanes; i < end; i += kLanes) peaks = max(peaks, load(row + i));
      const float peak = max_lanes(peaks);
      const float now = peak > largest[r] ? peak : largest[r];
      if (now > largest[r]) {
        float lanes[kLanes];
        store(lanes, exp(splat(largest[r]) - now));
        sum[r] *= lanes[0];
        for (int64_t i = 0; i < width; i += kLanes) store(out + r * width + i, load(out + r * width + i) * lanes[0]);
        largest[r] = now;
      }
      sum[r] += weigh(row + begin, end - begin, now);
    }
    cache.weights(keys, scores, begin, end - begin);
    if constexpr (Cache::kBits > 8) {
      if (hidden && !all_finite<Cache::kBits>(values, a.head_dim)) {
        for (int64_t r = 0; r < a.rows; ++r) {
          hide<Cache::kBits>(values, a.head_dim, sights[r], copy);
          cache.mix(copy, begin, used - begin, r, 1, scores, out, values);
        }
        continue;
      }
    }
    const uint8_t* const next = first + kKvBlockTokens < a.kv_end ? a.blocks[block + 1 - a.first_block] : values;
    cache.mix(values, begin, used - begin, 0, a.rows, scores, out, next);
  }

  before.add(piece, a.rows, width);
  for (int64_t r = 0; r < a.rows; ++r) {
    if (a.max) {
      a.max[r] = before.largest[r];
      a.sum[r] = before.sum[r];
    }
    const float scale = a.max || before.sum[r] == 0.0f ? 1.0f : 1.0f / before.sum[r];
    float* const row = before.out + r * width;
    for (int64_t i = 0; i < width; i += kLanes) store(row + i, load(row + i) * scale);
    __builtin_memcpy(a.out[r], row, (size_t)a.head_dim * sizeof(float));
  }
}

}  // namespace
}  // namespace gemlet::kernels
