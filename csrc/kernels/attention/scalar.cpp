// The definition of attention and of the cache's layout.
#include <math.h>

#include "base/float_bits.h"
#include "kernels/attention/attention.h"

namespace gemlet::kernels::scalar {
namespace {

// The types of the cache's elements. One token's key or value x is stored as write(x, scale) with scale =
// peak_scale(x). x is then read(element) * scale.
struct F32 {
  using Element = float;
  static float peak_scale(const float*, int64_t) { return 1.0f; }
  static float write(float v, float) { return v; }
  static float read(float v) { return v; }
};
struct Bf16 {
  using Element = uint16_t;
  static float peak_scale(const float*, int64_t) { return 1.0f; }
  static uint16_t write(float v, float) { return f32_to_bf16(v); }
  static float read(uint16_t v) { return bf16_to_f32(v); }
};
struct Int8 {
  using Element = uint8_t;
  static float peak_scale(const float* x, int64_t dim) {
    float peak = 0.0f;
    for (int64_t d = 0; d < dim; ++d) peak = fabsf(x[d]) > peak || x[d] != x[d] ? fabsf(x[d]) : peak;
    return peak / 127.0f;
  }
  static uint8_t write(float v, float scale) {
    const float steps = scale > kZeroKvPeak / 127.0f ? v / scale : 0.0f;
    return static_cast<uint8_t>((steps == steps && fabsf(steps) <= 127.5f ? lrintf(steps) : 0) + kKvInt8Zero);
  }
  static float read(uint8_t v) { return static_cast<float>(v) - static_cast<float>(kKvInt8Zero); }
};

// The index of (output o, column c) in a packed matrix of `cols` columns.
template <typename Cache>
int64_t index(int64_t o, int64_t c, int64_t cols) {
  constexpr int64_t kColumns = kUnitBytes / static_cast<int64_t>(sizeof(typename Cache::Element));
  return o / kPanelRows * kPanelRows * cols + c / kColumns * kPanelRows * kColumns + o % kPanelRows * kColumns +
         c % kColumns;
}

// The parts of one head of a block.
template <typename Cache, typename Byte, typename Element, typename Scale>
struct Head {
  static constexpr int64_t kBytes = sizeof(typename Cache::Element);
  Head(Byte* head, int64_t head_dim)
      : cols(kv_key_columns(head_dim, kBytes)),
        keys(reinterpret_cast<Element*>(head)),
        values(reinterpret_cast<Element*>(head + kv_key_bytes(head_dim, kBytes))),
        key_scales(reinterpret_cast<Scale*>(head + kv_key_bytes(head_dim, kBytes) + kv_value_bytes(head_dim, kBytes))),
        value_scales(key_scales + kKvBlockTokens) {}
  int64_t cols;
  Element *keys, *values;
  Scale *key_scales, *value_scales;  // only in an int8 cache
};
template <typename Cache>
using Reader = Head<Cache, const uint8_t, const typename Cache::Element, const float>;
template <typename Cache>
using Writer = Head<Cache, uint8_t, typename Cache::Element, float>;

template <typename Cache>
void kv_store(const KvStoreArgs& a) {
  const Writer<Cache> head(a.head, a.head_dim);
  const float key_scale = Cache::peak_scale(a.key, a.head_dim), value_scale = Cache::peak_scale(a.value, a.head_dim);
  for (int64_t d = 0; d < a.head_dim; ++d) {
    head.keys[index<Cache>(a.slot, d, head.cols)] = Cache::write(a.key[d], key_scale);
    head.values[index<Cache>(d, a.slot, kKvBlockTokens)] = Cache::write(a.value[d], value_scale);
  }
  if (kv_scale_bytes(head.kBytes) == 0) return;
  head.key_scales[a.slot] = key_scale;
  head.value_scales[a.slot] = value_scale;
}

// What some of the tokens add up to: the largest score, the sum of e^(score - largest), and the values with these
// weights.
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
      const bool scaled = kv_scale_bytes(head.kBytes) > 0;
      float block_max = -INFINITY;
      for (int64_t slot = 0; slot < kKvBlockTokens; ++slot) {
        const int64_t t = block * kKvBlockTokens + slot;
        scores[slot] = -INFINITY;
        if (t < a.kv_begin || t >= a.kv_end || t > newest || t < oldest) continue;
        float s = 0.0f;
        for (int64_t d = 0; d < a.head_dim; ++d) {
          s += a.q[r][d] * Cache::read(head.keys[index<Cache>(slot, d, head.cols)]);
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
          out[d] += weight * Cache::read(head.values[index<Cache>(d, slot, kKvBlockTokens)]);
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
void attention_f32(const AttentionArgs& a) { attention<F32>(a); }
void attention_bf16(const AttentionArgs& a) { attention<Bf16>(a); }
void attention_int8(const AttentionArgs& a) { attention<Int8>(a); }

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
