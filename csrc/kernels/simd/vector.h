// Functions that the bodies of kernels need besides the arithmetic operators of VF and VI. VF and VI are vectors of
// kLanes floats and int32. The tier's header declares them and is included before. Everything has internal linkage.
#pragma once

#include "formats/layout.h"

// For functions that compute tiles. The sums of a tile must stay in registers, and a function call would store them for
// every line.
#define GEMLET_INLINE inline __attribute__((always_inline))
#define GEMLET_INLINE_LAMBDA __attribute__((always_inline))

namespace gemlet::kernels {
namespace {

// Fetches the weights that lie kAhead bytes after `weights`. The processor's own prefetching is not enough: it fetches
// a fixed number of lines ahead, however long the computation between two lines takes.
GEMLET_INLINE void fetch_ahead(const uint8_t* weights, int64_t bytes) {
  if (kAhead == 0) return;
#pragma GCC unroll 16
  for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(weights + kAhead + at, 0, 2);
}

inline VF splat(float x) { return x - (VF){}; }
inline VI splat_i32(int32_t x) { return x - (VI){}; }
inline VF load(const float* p) {
  VF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline VI load_i32(const void* p) {
  VI v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
// The same four bytes in every lane.
inline VI splat_bytes(const void* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return splat_i32(four);
}
inline void store(float* p, VF v) { __builtin_memcpy(p, &v, sizeof v); }

// Calls f(i, add) for i from 0 to N - 1. add(sums, weights, x) is Dot::add() with the four bytes at x + column_of(i). A
// Dot with add_lane() takes them from the 16 bytes around them, which are then loaded once for four columns; that
// instruction needs a constant i. The other tiers keep a loop, because gcc schedules it better.
template <typename Dot, int N, auto column_of, int I = 0, typename F>
GEMLET_INLINE void for_columns(const F& f) {
  if constexpr (requires(VI v, const uint8_t* x) { Dot::template add_lane<0>(v, v, x); }) {
    if constexpr (I < N) {
      f(I, [](VI sums, VI weights, const uint8_t* x) GEMLET_INLINE_LAMBDA {
        return Dot::template add_lane<column_of(I) % 16 / 4>(sums, weights, x + column_of(I) / 16 * 16);
      });
      for_columns<Dot, N, column_of, I + 1>(f);
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      f(i, [i](VI sums, VI weights, const uint8_t* x)
               GEMLET_INLINE_LAMBDA { return Dot::add(sums, weights, x + column_of(i)); });
    }
  }
}
constexpr int four_columns(int i) { return 4 * i; }

// Loads the first `count` floats. The other lanes are zero.
inline VF load_some(const float* p, int64_t count) {
  float lanes[kLanes] = {};
  __builtin_memcpy(lanes, p, (size_t)count * sizeof(float));
  return load(lanes);
}
inline void store_some(float* p, VF v, int64_t count) {
  float lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(p, lanes, (size_t)count * sizeof(float));
}

// If the loop is unrolled, gcc keeps the lanes in registers.
inline float sum_lanes(VF v) {
  float lanes[kLanes];
  store(lanes, v);
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}
inline float max_lanes(VF v) {
  float lanes[kLanes];
  store(lanes, v);
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
  }
  return lanes[0];
}

inline VF abs(VF x) { return (VF)((VI)x & 0x7fffffff); }
inline VF select(VI mask, VF yes, VF no) { return (VF)((mask & (VI)yes) | (~mask & (VI)no)); }
inline VF to_float(VI x) { return __builtin_convertvector(x, VF); }

// Rounds x to bf16, in the low half of each lane: to the nearest number, ties to even. NaN stays NaN.
inline VI bf16_bits(VF x) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(VF))));  // unsigned, because those of a NaN may overflow
  const VI bits = (VI)x;
  const VI rounded = (VI)((Bits)bits + 0x7fffu + (((Bits)bits >> 16) & 1u)) >> 16;
  return x == x ? rounded : (bits >> 16) | 0x40;
}

// e^x as 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2]. The relative error is below 2e-7. The result is 0 below
// -87.3, and e^88 above 88.
inline VF exp(VF x) {
  // NaN stays NaN: max() then returns its second operand, and every comparison is false.
  const VF clamped = max(splat(-87.3f), select(x > splat(88.0f), splat(88.0f), x));
  const VF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
  const VF shifted = clamped * 1.44269504f + magic;
  const VF n = shifted - magic;
  const VF r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  VF p = splat(1.3981999e-3f);
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const VI power = (((VI)shifted - (VI)magic) + 127) << 23;
  return select(x < splat(-87.3f), splat(0.0f), p * (VF)power);
}

// tanh(x) = 1 - 2 / (e^2x + 1): absolute error below 2e-7.
inline VF tanh(VF x) { return 1.0f - 2.0f / (exp(x + x) + 1.0f); }

}  // namespace
}  // namespace gemlet::kernels
