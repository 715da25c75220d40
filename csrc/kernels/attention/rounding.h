// Functions for rounding to integers.
#pragma once

#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

inline VF round(VF x) { return (x + 12582912.0f) - 12582912.0f; }  // 1.5 * 2^23; |x| below 2^22
inline int32_t sum_lanes(VI v) {
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}
// The largest magnitude, or an infinity or a NaN if there is one: magnitudes compare like their bits.
inline float largest_magnitude(VI peaks) {
  int32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits = peaks[i] > bits ? peaks[i] : bits;
  float peak;
  __builtin_memcpy(&peak, &bits, sizeof peak);
  return peak;
}
inline VI raise_peaks(VI peaks, VF x) {
  const VI bits = (VI)abs(x);
  return bits > peaks ? bits : peaks;
}

}  // namespace
}  // namespace gemlet::kernels
