// Writes one token into a block. Its key is a column of 4-byte units that lie 64 bytes apart. Its value is one number
// (32, 16, 8 or 4 bits) in every unit of some lines.
#pragma once

#include "kernels/attention/attention.h"
#include "kernels/attention/rounding.h"

namespace gemlet::kernels {
namespace {

inline VF head_vector(const float* x, int64_t i, int64_t dim) {
  return dim - i >= kLanes ? load(x + i) : load_some(x + i, dim - i);
}

inline VI peaks_of(const float* x, int64_t dim) {
  VI peaks = {};
  for (int64_t i = 0; i < dim; i += kLanes) peaks = raise_peaks(peaks, head_vector(x, i, dim));
  return peaks;
}

// An Element has kBits, prepare(x, dim), and bits(vector), which puts the element into the low bits of every lane.
struct F32Element {
  static constexpr int64_t kBits = 32;
  void prepare(const float*, int64_t) {}
  VI bits(VF x) const { return (VI)x; }
};
struct Bf16Element {
  static constexpr int64_t kBits = 16;
  void prepare(const float*, int64_t) {}
  VI bits(VF x) const { return bf16_bits(x); }
};
// An element of an int8 cache: round(x * inverse) + 128.
struct Int8Element {
  static constexpr int64_t kBits = 8;
  float inverse = 0.0f, scale = 0.0f;
  void prepare(const float* x, int64_t dim) {
    const float peak = largest_magnitude(peaks_of(x, dim));
    scale = peak * (1.0f / 127.0f);
    inverse = peak > kZeroKvPeak ? 127.0f / peak : 0.0f;
  }
  VI bits(VF x) const {
    const VF rounded = round(x * inverse);
    return __builtin_convertvector(select(rounded == rounded, rounded, splat(0.0f)), VI) + kKvInt8Zero;
  }
};
// An element of an int4 cache: the index of the nearest level.
struct Int4Element {
  static constexpr int64_t kBits = 4;
  float inverse = 0.0f, scale = 0.0f;
  void prepare(const float* x, int64_t dim) {
    const float peak = largest_magnitude(peaks_of(x, dim));
    if (peak <= kZeroKvPeak) return;
    const float shrink = 127.0f / peak;  // this way no square overflows
    VF squares = {};
    for (int64_t i = 0; i < dim; i += kLanes) {
      const VF small = head_vector(x, i, dim) * shrink;
      squares = multiply_add(squares, small, small);
    }
    // If x has an infinity or a NaN, the scale is NaN. An infinite scale would not do: no level is 0, so a score might
    // become minus infinity, and its token would only get the weight 0.
    scale = __builtin_sqrtf(sum_lanes(squares) / (float)dim) / (kInt4Unit * shrink);
    inverse = 1.0f / scale;
  }
  VI bits(VF x) const {
    const VF units = x * inverse;
    VI index = {};
    for (int i = 0; i < 15; ++i) index -= (VI)(units > int4_border(i));
    return index;
  }
};

template <typename Element>
inline Element store_key(const KvStoreArgs& a) {
  constexpr int64_t kBits = Element::kBits, kBytes = kBits / 8;
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Element element;
  element.prepare(a.key, a.head_dim);
  const int64_t columns = kv_key_columns(a.head_dim, kBits);
  uint8_t* const keys =
      a.head + a.slot / kPanelRows * kPanelRows * columns * kBits / 8 + a.slot % kPanelRows * kUnitBytes;
  if constexpr (kBits == 4) {
    uint8_t numbers[kMaxHeadDim + kLanes] = {};
    for (int64_t i = 0; i < a.head_dim; i += kLanes) {
      const Bytes bytes = __builtin_convertvector(element.bits(head_vector(a.key, i, a.head_dim)), Bytes);
      __builtin_memcpy(numbers + i, &bytes, sizeof bytes);
    }
    for (int64_t line = 0; line < columns / 8; ++line) {
      uint32_t halves[2];
      __builtin_memcpy(halves, numbers + 8 * line, sizeof halves);
      const uint32_t unit = halves[0] | halves[1] << 4;
      __builtin_memcpy(keys + line * kLineBytes, &unit, sizeof unit);
    }
    return element;
  }
  for (int64_t i = 0; i < a.head_dim; i += kLanes) {
    const VI bits = element.bits(head_vector(a.key, i, a.head_dim));
    uint8_t units[sizeof bits];
    if constexpr (kBytes == 4) {
      __builtin_memcpy(units, &bits, sizeof bits);
    } else if constexpr (kBytes == 2) {
      const Halves halves = __builtin_convertvector(bits, Halves);
      __builtin_memcpy(units, &halves, sizeof halves);
    } else {
      const Bytes bytes = __builtin_convertvector(bits, Bytes);
      __builtin_memcpy(units, &bytes, sizeof bytes);
    }
    const int64_t left = columns - i < kLanes ? columns - i : kLanes;
    uint8_t* const to = keys + i * kBytes * kPanelRows;  // 4 bytes of columns are a line of 64 bytes
    for (int64_t unit = 0; unit < left * kBytes / kUnitBytes; ++unit)
      __builtin_memcpy(to + unit * kLineBytes, units + unit * kUnitBytes, kUnitBytes);
  }
  return element;
}

template <typename Element>
inline Element store_value(const KvStoreArgs& a) {
  constexpr int64_t kBits = Element::kBits, kColumns = kv_line_columns(kBits);
  Element element;
  element.prepare(a.value, a.head_dim);
  const int64_t column = a.slot % kColumns;
  const int shift = (int)(kBits == 4 ? column % 4 * 8 + column / 4 * 4 : column * kBits);
  const int32_t mask = (int32_t)((kBits == 32 ? 0xffffffffu : (1u << (kBits % 32)) - 1) << shift);
  uint8_t* const values = a.head + kv_key_bytes(a.head_dim, kBits) + a.slot / kColumns * kLineBytes;
  for (int64_t i = 0; i < a.head_dim; i += kLanes) {
    uint8_t* const at = values + i / kPanelRows * kPanelRows * kKvBlockTokens * kBits / 8 + i % kPanelRows * kUnitBytes;
    const VI bits = (element.bits(head_vector(a.value, i, a.head_dim)) << shift) & mask;
    const VI merged = (load_i32(at) & ~mask) | bits;
    __builtin_memcpy(at, &merged, sizeof merged);
  }
  return element;
}

template <typename Element>
inline void store_scaled(const KvStoreArgs& a) {
  constexpr int64_t kBits = Element::kBits;
  float* const scales = (float*)(a.head + kv_key_bytes(a.head_dim, kBits) + kv_value_bytes(a.head_dim, kBits));
  scales[a.slot] = store_key<Element>(a).scale;
  scales[kKvBlockTokens + a.slot] = store_value<Element>(a).scale;
}

}  // namespace

namespace GEMLET_TIER {

void kv_store_f32(const KvStoreArgs& a) {
  store_key<F32Element>(a);
  store_value<F32Element>(a);
}
void kv_store_bf16(const KvStoreArgs& a) {
  store_key<Bf16Element>(a);
  store_value<Bf16Element>(a);
}
void kv_store_int8(const KvStoreArgs& a) { store_scaled<Int8Element>(a); }
void kv_store_int4(const KvStoreArgs& a) { store_scaled<Int4Element>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
