// The definition of attention and of the cache's layout.
#include <math.h>

#include "base/float_bits.h"
#include "kernels/attention/attention.h"

namespace gemlet::kernels::scalar {
namespace {

// The types of the cache's numbers. One token's key or value is stored with scale = scale_of(x). put(v, scale) writes a
// number v into a column of a 4-byte unit, and get() * scale is the stored number.
template <typename Number>
struct Numbers {
  static constexpr int64_t kBits = 8 * sizeof(Number);
  static float scale_of(const float*, int64_t) { return 1.0f; }
  static Number& at(uint8_t* unit, int64_t column) { return reinterpret_cast<Number*>(unit)[column]; }
  static Number at(const uint8_t* unit, int64_t column) { return reinterpret_cast<const Number*>(unit)[column]; }
};
struct F32 : Numbers<float> {
  static void put(float v, float, uint8_t* unit, int64_t column) { at(unit, column) = v; }
  static float get(const uint8_t* unit, int64_t column) { return at(unit, column); }
};
struct Bf16 : Numbers<uint16_t> {
  static void put(float v, float, uint8_t* unit, int64_t column) { at(unit, column) = f32_to_bf16(v); }
  static float get(const uint8_t* unit, int64_t column) { return bf16_to_f32(at(unit, column)); }
};

float peak_of(const float* x, int64_t dim) {
  float peak = 0.0f;
  for (int64_t d = 0; d < dim; ++d) peak = fabsf(x[d]) > peak || x[d] != x[d] ? fabsf(x[d]) : peak;
  return peak;
}
struct Int8 : Numbers<uint8_t> {
  static float scale_of(const float* x, int64_t dim) { return peak_of(x, dim) / 127.0f; }
  static void put(float v, float scale, uint8_t* unit, int64_t column) {
    const float steps = scale > kZeroKvPeak / 127.0f ? v / scale : 0.0f;
    const long rounded = steps == steps && fabsf(steps) <= 127.5f ? lrintf(steps) : 0;
    at(unit, column) = static_cast<uint8_t>(rounded + kKvInt8Zero);
  }
  static float get(const uint8_t* unit, int64_t column) {
    return static_cast<float>(at(unit, column)) - static_cast<float>(kKvInt8Zero);
  }
};
struct Int4 {
  static constexpr int64_t kBits = 4;
  static float scale_of(const float* x, int64_t dim) {
    const float peak = peak_of(x, dim);
    if (peak <= kZeroKvPeak) return 0.0f;
    float squares = 0.0f;  // the squares of x / peak, which cannot overflow
    for (int64_t d = 0; d < dim; ++d) squares += (x[d] / peak) * (x[d] / peak);
    return sqrtf(squares / static_cast<float>(dim)) * peak / kInt4Unit;  // NaN if x is not finite
  }
  static void put(float v, float scale, uint8_t* unit, int64_t column) {
    int index = 0;
    while (index < 15 && scale > 0.0f && v / scale > int4_border(index)) ++index;
    uint8_t& byte = unit[column % 4];
    byte = static_cast<uint8_t>(column < 4 ? (byte & 0xf0) | index : (byte & 0x0f) | index << 4);
  }
  static float get(const uint8_t* unit, int64_t column) {
    return static_cast<float>(2 * kInt4Levels[unit[column % 4] >> column / 4 * 4 & 15] - kInt4Middle);
  }
};

// The place of column c of output o in a packed matrix: its unit of 4 bytes, and its column in the unit.
template <typename Cache>
int64_t unit_of(int64_t o, int64_t c, int64_t cols) {
  constexpr int64_t kColumns = kv_line_columns(Cache::kBits);
  return (o / kPanelRows * (cols / kColumns) + c / kColumns) * kLineBytes + o % kPanelRows * kUnitBytes;
}
template <typename Cache>
int64_t column_of(int64_t c) {
  return c % kv_line_columns(Cache::kBits);
}

// The parts of one head of a block.
template <typename Cache, typename Byte, typename Scale>
struct Head {
  static constexpr int64_t kBits = Cache::kBits;
  Head(Byte* head, int64_t head_dim)
      : cols(kv_key_columns(head_dim, kBits)),
        keys(head),
        values(head + kv_key_bytes(head_dim, kBits)),
        key_scales(reinterpret_cast<Scale*>(values + kv_value_bytes(head_dim, kBits))),
        value_scales(key_scales + kKvBlockTokens) {}
  int64_t cols;
  Byte *keys, *values;
  Scale *key_scales, *value_scales;  // only in caches of int8 and int4

  Byte* key_unit(int64_t slot, int64_t d) const { return keys + unit_of<Cache>(slot, d, cols); }
  Byte* value_unit(int64_t slot, int64_t d) const { return values + unit_of<Cache>(d, slot, kKvBlockTokens); }
};
template <typename Cache>
using Reader = Head<Cache, const uint8_t, const float>;
template <typename Cache>
using Writer = Head<Cache, uint8_t, float>;

template <typename Cache>
void kv_store(const KvStoreArgs& a) {
  const Writer<Cache> head(a.head, a.head_dim);
  const float key_scale = Cache::scale_of(a.key, a.head_dim), value_scale = Cache::scale_of(a.value, a.head_dim);
  for (int64_t d = 0; d < a.head_dim; ++d) {
    Cache::put(a.key[d], key_scale, head.key_unit(a.slot, d), column_of<Cache>(d));
    Cache::put(a.value[d], value_scale, head.value_unit(a.slot, d), column_of<Cache>(a.slot));
  }
  if (kv_scale_bytes(head.kBits) == 0) return;
  head.key_scales[a.slot] = key_scale;
  head.value_scales[a.slot] = value_scale;
}

// Sums over some of the tokens: the largest score, the sum of e^(score - largest), and the values with these weights.
struct Sums {
  float* out;  // [head_dim]
  float largest = -INFINITY, sum = 0.0f;

  void clear(int64_t head_dim) {
    for (int64_t d = 0; d < head_dim; ++d) out[d] = 0.0f;
    largest = -INFINITY;
    sum = 0.0f;
  }
};

template <typename Cache>
void attention(const AttentionArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    float* scores = a.scratch;
    Sums piece = {a.scratch + kKvBlockTokens}, before = {piece.out + a.head_dim};
    piece.clear(a.head_dim);
    before.clear(a.head_dim);
    float *const out = piece.out, &largest = piece.largest, &sum = piece.sum;
    const int64_t position = a.positions[r];
    const int64_t oldest = a.window > 0 ? position - a.window + 1 : 0, newest = position + a.ahead;
    for (int64_t block = a.kv_begin / kKvBlockTokens; block * kKvBlockTokens < a.kv_end; ++block) {
      if (block * kKvBlockTokens % kPieceTokens == 0) {
        add_piece(out, largest, sum, a.head_dim, before.out, before.largest, before.sum);
        piece.clear(a.head_dim);
      }
      const Reader<Cache> head(a.blocks[block - a.first_block], a.head_dim);
      const bool scaled = kv_scale_bytes(head.kBits) > 0;
      float block_max = -INFINITY;
      for (int64_t slot = 0; slot < kKvBlockTokens; ++slot) {
        const int64_t t = block * kKvBlockTokens + slot;
        scores[slot] = -INFINITY;
        if (t < a.kv_begin || t >= a.kv_end || t > newest || t < oldest) continue;
        float s = 0.0f;
        for (int64_t d = 0; d < a.head_dim; ++d) {
          s += a.q[r][d] * Cache::get(head.key_unit(slot, d), column_of<Cache>(d));
        }
        if (scaled) s *= head.key_scales[slot];
        if (a.softcap > 0.0f) s = a.softcap * tanhf(s / a.softcap);
        scores[slot] = s;
        if (s > block_max || s != s) block_max = s;  // a NaN must not be lost
      }
      if (block_max == -INFINITY) continue;
      const float previous = largest;
      largest = fmaxf(largest, block_max);
      const float rescale = expf(previous - largest);
      sum *= rescale;
      for (int64_t d = 0; d < a.head_dim; ++d) out[d] *= rescale;
      for (int64_t slot = 0; slot < kKvBlockTokens; ++slot) {
        if (scores[slot] == -INFINITY) continue;
        const float p = expf(scores[slot] - largest);
        sum += p;
        const float weight = scaled ? p * head.value_scales[slot] : p;
        for (int64_t d = 0; d < a.head_dim; ++d) {
          out[d] += weight * Cache::get(head.value_unit(slot, d), column_of<Cache>(slot));
        }
      }
    }
    add_piece(out, largest, sum, a.head_dim, before.out, before.largest, before.sum);
    if (a.max) {
      a.max[r] = before.largest;
      a.sum[r] = before.sum;
    }
    const float scale = a.max || before.sum == 0.0f ? 1.0f : 1.0f / before.sum;
    for (int64_t d = 0; d < a.head_dim; ++d) a.out[r][d] = before.out[d] * scale;
  }
}

}  // namespace

void kv_store_f32(const KvStoreArgs& a) { kv_store<F32>(a); }
void kv_store_bf16(const KvStoreArgs& a) { kv_store<Bf16>(a); }
void kv_store_int8(const KvStoreArgs& a) { kv_store<Int8>(a); }
void kv_store_int4(const KvStoreArgs& a) { kv_store<Int4>(a); }
void attention_f32(const AttentionArgs& a) { attention<F32>(a); }
void attention_bf16(const AttentionArgs& a) { attention<Bf16>(a); }
void attention_int8(const AttentionArgs& a) { attention<Int8>(a); }
void attention_int4(const AttentionArgs& a) { attention<Int4>(a); }

}  // namespace gemlet::kernels::scalar

namespace gemlet::kernels {

void add_piece(const float* from, float from_max, float from_sum, int64_t head_dim, float* to, float& max, float& sum) {
  if (from_sum == 0.0f) return;
  if (sum == 0.0f) {
    for (int64_t d = 0; d < head_dim; ++d) to[d] = from[d];
    max = from_max;
    sum = from_sum;
    return;
  }
  const float now = from_max > max ? from_max : max;
  const float own = expf(max - now), other = expf(from_max - now);
  max = now;
  sum = sum * own + from_sum * other;
  for (int64_t d = 0; d < head_dim; ++d) to[d] = to[d] * own + from[d] * other;
}

}  // namespace gemlet::kernels
