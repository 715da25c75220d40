// The definition of attention and of the cache's layout.
#include <math.h>

#include "base/float_bits.h"
#include "kernels/attention/attention.h"

namespace gemlet::kernels::scalar {
namespace {

// Element types of the cache and where (output o, column c) of a packed matrix with `cols` columns lies.
struct F32 {
  using Element = float;
  static float read(float v) { return v; }
  static float write(float v) { return v; }
  static int64_t index(int64_t o, int64_t c, int64_t cols) { return o / 16 * 16 * cols + c * 16 + o % 16; }
};
struct Bf16 {
  using Element = uint16_t;
  static float read(uint16_t v) { return bf16_to_f32(v); }
  static uint16_t write(float v) { return f32_to_bf16(v); }
  static int64_t index(int64_t o, int64_t c, int64_t cols) {
    return o / 16 * 16 * cols + c / 2 * 32 + o % 16 * 2 + c % 2;
  }
};

template <typename Cache>
void kv_store(const KvStoreArgs& a) {
  using Element = typename Cache::Element;
  Element* keys = reinterpret_cast<Element*>(a.head);
  Element* values = reinterpret_cast<Element*>(a.head + kv_key_bytes(a.head_dim, sizeof(Element)));
  const int64_t cols = (a.head_dim + 1) / 2 * 2;
  for (int64_t d = 0; d < a.head_dim; ++d) keys[Cache::index(a.slot, d, cols)] = Cache::write(a.key[d]);
  for (int64_t d = 0; d < a.head_dim; ++d) values[Cache::index(d, a.slot, kKvBlockTokens)] = Cache::write(a.value[d]);
}

template <typename Cache>
void attention(const AttentionArgs& a) {
  using Element = typename Cache::Element;
  const int64_t cols = (a.head_dim + 1) / 2 * 2;
  for (int64_t r = 0; r < a.rows; ++r) {
    float* scores = a.scratch;
    float* out = a.scratch + kKvBlockTokens;
    for (int64_t d = 0; d < a.head_dim; ++d) out[d] = 0.0f;
    float largest = -INFINITY, sum = 0.0f;
    const int64_t position = a.positions[r];
    const int64_t oldest = a.window > 0 ? position - a.window + 1 : 0;
    for (int64_t block = a.kv_begin / kKvBlockTokens; block * kKvBlockTokens < a.kv_end; ++block) {
      const uint8_t* head = a.blocks[block - a.first_block] + a.head_offset;
      const Element* keys = reinterpret_cast<const Element*>(head);
      const Element* values = reinterpret_cast<const Element*>(head + kv_key_bytes(a.head_dim, sizeof(Element)));
      float block_max = -INFINITY;
      for (int64_t slot = 0; slot < kKvBlockTokens; ++slot) {
        const int64_t t = block * kKvBlockTokens + slot;
        scores[slot] = -INFINITY;
        if (t < a.kv_begin || t >= a.kv_end || t > position || t < oldest) continue;
        float s = 0.0f;
        for (int64_t d = 0; d < a.head_dim; ++d) s += a.q[r][d] * Cache::read(keys[Cache::index(slot, d, cols)]);
        if (a.softcap > 0.0f) s = a.softcap * tanhf(s / a.softcap);
        scores[slot] = s;
        if (s > block_max || s != s) block_max = s;  // NaN must show
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
        for (int64_t d = 0; d < a.head_dim; ++d)
          out[d] += p * Cache::read(values[Cache::index(d, slot, kKvBlockTokens)]);
      }
    }
    if (a.max) {
      a.max[r] = largest;
      a.sum[r] = sum;
    }
    const float scale = a.max || sum == 0.0f ? 1.0f : 1.0f / sum;
    for (int64_t d = 0; d < a.head_dim; ++d) a.out[r][d] = out[d] * scale;
  }
}

}  // namespace

void kv_store_f32(const KvStoreArgs& a) { kv_store<F32>(a); }
void kv_store_bf16(const KvStoreArgs& a) { kv_store<Bf16>(a); }
void attention_f32(const AttentionArgs& a) { attention<F32>(a); }
void attention_bf16(const AttentionArgs& a) { attention<Bf16>(a); }

}  // namespace gemlet::kernels::scalar
