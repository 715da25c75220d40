// Attention over an int8 or int4 cache. Both products are integer dot products. The bytes of an int8 cache are
// multiplied as they are stored. The levels of an int4 cache are looked up first. Queries and softmax weights are
// rounded to 16 bits and split into two bytes: x = step * (254 high + low), both within +-127. A score is multiplied by
// the scale of its key, and a weight by the scale of its value before it is rounded.
#pragma once

#include "kernels/attention/body.h"
//
#include "kernels/attention/rounding.h"

namespace gemlet::kernels {
namespace {

constexpr int32_t kHighUnit = 254;
constexpr float kLargestStep = 127.0f * kHighUnit;

// A row of 16-bit numbers: the high bytes of four columns, then the low bytes of these columns, and so on. The rows of
// a tile are interleaved, so the next four columns of a row are `stride` bytes further on.
template <int64_t kBits>
struct Row16 {
  static constexpr int32_t kZero = kBits == 8 ? kKvInt8Zero : kInt4Middle;
  uint8_t* bytes;
  int64_t stride;
  float step;
  int32_t high_offset,
      low_offset;  // compensate for the zero point of the other factor, whose stored bytes are unsigned

  // x(i) returns the vector at i. `count` is a multiple of kLanes.
  template <typename Get>
  void set(int64_t count, float peak, Get x) {
    typedef int8_t Bytes __attribute__((vector_size(kLanes)));
    step = peak * (1.0f / kLargestStep);
    const float inverse = peak > kZeroKvPeak ? kLargestStep / peak : 0.0f;
    VI high_sum = {}, low_sum = {};
    uint8_t* to = bytes;
    for (int64_t i = 0; i < count; i += kLanes) {
      const VF rounded = round(x(i) * inverse);
      const VF whole = select(rounded == rounded, rounded, splat(0.0f));  // infinity * 0 is NaN; `step` reports it
      const VF upper = round(whole * (1.0f / kHighUnit));
      const VI h = __builtin_convertvector(upper, VI);
      const VI l = __builtin_convertvector(whole - upper * (float)kHighUnit, VI);
      high_sum += h;
      low_sum += l;
      const Bytes high = __builtin_convertvector(h, Bytes), low = __builtin_convertvector(l, Bytes);
      for (int unit = 0; unit < kLanes / 4; ++unit, to += stride) {
        __builtin_memcpy(to, (const uint8_t*)&high + 4 * unit, 4);
        __builtin_memcpy(to + 4, (const uint8_t*)&low + 4 * unit, 4);
      }
    }
    high_offset = -kZero * sum_lanes(high_sum);
    low_offset = -kZero * sum_lanes(low_sum);
  }
};

// Adds the products of a vector of weights and four columns of the R rows of a tile, which begin at `bytes`.
template <typename Dot, int R>
GEMLET_INLINE void add_rows(VI (&high)[R], VI (&low)[R], VI weights, const uint8_t* bytes) {
  if constexpr (R % 2 == 0) {  // all 16 bytes around a column belong to these rows
    for_columns<Dot, 2 * R, four_columns>([&](int i, auto add) GEMLET_INLINE_LAMBDA {
      VI& sum = i % 2 == 0 ? high[i / 2] : low[i / 2];
      sum = add(sum, weights, bytes);
    });
  } else {
    for (int r = 0; r < R; ++r) {
      high[r] = Dot::add(high[r], weights, bytes + 8 * r);
      low[r] = Dot::add(low[r], weights, bytes + 8 * r + 4);
    }
  }
}

// products[r] = x[r] . lines / x[r].step, for the R rows of a tile and one vector of a panel. `next` points to the
// lines at the same place in the data that is read afterwards. These lines are prefetched, because each line takes many
// products, and memory and arithmetic would otherwise wait for each other.
template <int R>
GEMLET_INLINE void integer_tile(const Row16<8>* x, const uint8_t* lines, const uint8_t* next, int64_t count,
                                VF (&products)[R]) {
  VI high[R], low[R];
  for (int r = 0; r < R; ++r) {
    high[r] = Q8Dot::start(x[r].high_offset);
    low[r] = Q8Dot::start(x[r].low_offset);
  }
  const uint8_t* bytes = x->bytes;
#pragma GCC unroll 4
  for (int64_t j = 0; j < count; ++j) {
    const VI w = load_i32(lines + j * kLineBytes);
    __builtin_prefetch(next + j * kLineBytes, 0, 2);
    add_rows<Q8Dot>(high, low, w, bytes + 8 * R * j);
  }
  for (int r = 0; r < R; ++r) {
    const VF h = to_float(Q8Dot::total(high[r], x[r].high_offset));
    const VF l = to_float(Q8Dot::total(low[r], x[r].low_offset));
    products[r] = multiply_add(l, h, splat((float)kHighUnit));
  }
}

template <int R>
GEMLET_INLINE void integer_tile(const Row16<4>* x, const uint8_t* lines, const uint8_t* next, int64_t count,
                                VF (&products)[R]) {
  VI high[R] = {}, low[R] = {};
  const uint8_t* bytes = x->bytes;
  const VI levels = sixteen_bytes(kInt4Levels);
#pragma GCC unroll 4
  for (int64_t j = 0; j < count; ++j) {
    const VI w = load_i32(lines + j * kLineBytes);
    __builtin_prefetch(next + j * kLineBytes, 0, 2);
    for (int half = 0; half < 2; ++half) {
      const VI columns = look_up(levels, half == 0 ? w & 0x0f0f0f0f : high_nibbles(w));
      add_rows<BitsDot>(high, low, columns, bytes + 8 * R * (2 * j + half));
    }
  }
  for (int r = 0; r < R; ++r) {
    const VF h = to_float(2 * high[r] + x[r].high_offset);
    const VF l = to_float(2 * low[r] + x[r].low_offset);
    products[r] = multiply_add(l, h, splat((float)kHighUnit));
  }
}

template <int64_t kBitsOfNumber>
struct IntegerCache {
  static constexpr int64_t kBits = kBitsOfNumber, kColumns = kv_line_columns(kBits);
  const AttentionArgs& a;
  int64_t columns, width;
  Row16<kBits> q[kMaxAttentionRows], p[kMaxAttentionRows];

  IntegerCache(const AttentionArgs& args, float* scratch)
      : a(args), columns(kv_key_columns(a.head_dim, kBits)), width(padded_head_dim(a.head_dim)) {
    uint8_t* at = (uint8_t*)scratch;
    for (int64_t first = 0; first < a.rows; first += kRowTile) {
      const int64_t tile = clamp(a.rows - first, 0, kRowTile);
      for (int64_t r = first; r < first + tile; ++r) {
        q[r].bytes = at + 8 * (r - first);
        p[r].bytes = q[r].bytes + 2 * width * tile;
        q[r].stride = p[r].stride = 8 * tile;
      }
      at += 2 * (width + kKvBlockTokens) * tile;
    }
    for (int64_t r = 0; r < a.rows; ++r) {
      const auto get = [&](int64_t i) {
        const int64_t left = a.head_dim - i;
        return left >= kLanes ? load(a.q[r] + i) : left > 0 ? load_some(a.q[r] + i, left) : splat(0.0f);
      };
      VI peaks = {};
      for (int64_t i = 0; i < a.head_dim; i += kLanes) peaks = raise_peaks(peaks, get(i));
      q[r].set(width, largest_magnitude(peaks), get);
    }
  }

  const float* key_scales(const uint8_t* keys) const {
    return (const float*)(keys + kv_key_bytes(a.head_dim, kBits) + kv_value_bytes(a.head_dim, kBits));
  }
  void scores(const uint8_t* keys, int64_t panel, int64_t panels, float* to) const {
    const float* scales = key_scales(keys);
    for_each_tile<kRowTile>(a.rows, [&]<int R>(int64_t row) {
      for (int64_t first = panel * kPanelRows; first < (panel + panels) * kPanelRows; first += kLanes) {
        VF products[R];
        const uint8_t* lines =
            keys + first / kPanelRows * (columns / kColumns) * kLineBytes + first % kPanelRows * kUnitBytes;
        integer_tile<R>(q + row, lines, lines + kv_key_bytes(a.head_dim, kBits), columns / kColumns, products);
        for (int r = 0; r < R; ++r) {
          store(to + (row + r) * kKvBlockTokens + first, products[r] * q[row + r].step * load(scales + first));
        }
      }
    });
  }
  void weights(const uint8_t* keys, float* scores, int64_t first, int64_t count) {
    const float* scales = key_scales(keys) + kKvBlockTokens;
    float peak[kMaxAttentionRows];
    for (int64_t r = 0; r < a.rows; ++r) {
      float* const row = scores + r * kKvBlockTokens;
      VI peaks = {};
      for (int64_t i = first; i < first + count; i += kLanes) {
        const VF weight = load(row + i);
        // The scale of a masked token may be anything.
        const VF scaled = select(weight == 0.0f, weight, weight * load(scales + i));
        store(row + i, scaled);
        peaks = raise_peaks(peaks, scaled);
      }
      peak[r] = largest_magnitude(peaks);
    }
    for (int64_t r = 0; r < a.rows; ++r) {  // a separate loop, so that rows do not wait for each other
      const float* const row = scores + r * kKvBlockTokens + first;
      p[r].set(count, peak[r], [&](int64_t i) { return load(row + i); });
    }
  }
  void mix(const uint8_t* values, int64_t first, int64_t count, int64_t, int64_t rows, const float*, float* out,
           const uint8_t* next) const {
    for_each_tile<kRowTile>(rows, [&]<int R>(int64_t row) {
      for (int64_t d = 0; d < width; d += kLanes) {
        VF products[R];
        const int64_t line = d / kPanelRows * (kKvBlockTokens / kColumns) + first / kColumns;
        const uint8_t* lines = values + line * kLineBytes + d % kPanelRows * kUnitBytes;
        integer_tile<R>(p + row, lines, next + (lines - values), (count + kColumns - 1) / kColumns, products);
        float* at = out + row * width + d;
        for (int r = 0; r < R; ++r, at += width) store(at, multiply_add(load(at), products[r], splat(p[row + r].step)));
      }
    });
  }
};

}  // namespace

namespace GEMLET_TIER {

void attention_int8(const AttentionArgs& a) { attention<IntegerCache<8>>(a); }
void attention_int4(const AttentionArgs& a) { attention<IntegerCache<4>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
