// Quantizes activations to int8.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

inline float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// Four lanes at a time: compilers turn a loop over single lanes into scalar code.
typedef int32_t FourInts __attribute__((vector_size(16)));
inline FourInts four_lanes(VI v, int first) {
  FourInts four;
  __builtin_memcpy(&four, (const char*)&v + first * 4, sizeof four);
  return four;
}
inline int32_t sum_lanes_i32(VI v) {
  FourInts sum = four_lanes(v, 0);
  for (int i = 4; i < kLanes; i += 4) sum += four_lanes(v, i);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}
inline int32_t max_lanes_i32(VI v) {
  FourInts most = four_lanes(v, 0);
  for (int i = 4; i < kLanes; i += 4) {
    const FourInts next = four_lanes(v, i);
    most = next > most ? next : most;
  }
  const int32_t even = most[0] > most[2] ? most[0] : most[2], odd = most[1] > most[3] ? most[1] : most[3];
  return even > odd ? even : odd;
}

}  // namespace

namespace GEMLET_TIER {

void quantize_i8(const QuantizeArgs& a) {
  int8_t* q = (int8_t*)a.out;
  float* scales = (float*)(a.out + a.cols);
  int32_t* offsets = (int32_t*)(a.out + a.cols + a.cols / kBlock * 4);
  constexpr int kVectors = kBlock / kLanes;
  bool lost = false;
  for (int64_t b = 0; b < a.cols / kBlock; ++b) {
    VF x[kVectors];
    VI peaks = {};  // magnitudes compare like their bits, and a NaN is the largest
    for (int v = 0; v < kVectors; ++v) {
      const int64_t c = b * kBlock + v * kLanes;
      const int64_t left = a.valid - c;
      x[v] = left >= kLanes ? load(a.x + c) : left > 0 ? load_some(a.x + c, left) : splat(0.0f);
      const VI bits = (VI)abs(x[v]);
      peaks = bits > peaks ? bits : peaks;
    }
    const int32_t peak_bits = max_lanes_i32(peaks);
    float scale, inverse;
    if (a.power_of_two) {
      const uint32_t bits = power_scale_bits((uint32_t)peak_bits);
      const bool usable = (uint32_t)peak_bits < kLeastLostPeak;
      scale = float_of_bits(bits);
      inverse = usable ? float_of_bits((254u << 23) - bits) : 0.0f;
      lost |= !usable;
    } else {
      const float peak = float_of_bits((uint32_t)peak_bits);
      scale = peak * (1.0f / 127.0f);
      inverse = peak > kZeroPeak ? 127.0f / peak : 0.0f;
    }
    VI sums[2] = {};  // the sums of the first 16 columns and of the others
    for (int v = 0; v < kVectors; ++v) {
      const VF rounded = (x[v] * inverse + 12582912.0f) - 12582912.0f;
      const VI integer = __builtin_convertvector(select(rounded == rounded, rounded, splat(0.0f)), VI);
      sums[v * kLanes / (kBlock / 2)] += integer;
      typedef int8_t Bytes __attribute__((vector_size(kLanes)));
      const Bytes bytes = __builtin_convertvector(integer, Bytes);
      __builtin_memcpy(q + b * kBlock + v * kLanes, &bytes, sizeof bytes);
    }
    scales[b] = scale;
    if (a.halves) {
      offsets[b] = packed_offsets(sum_lanes_i32(sums[0]), sum_lanes_i32(sums[1]));
    } else {
      offsets[b] = -a.zero_point * sum_lanes_i32(sums[0] + sums[1]);
    }
  }
  if (lost) scales[0] = __builtin_nanf("");
}

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
