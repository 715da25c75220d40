// NEON with sdot. Only dotprod.cpp files include this header.
#pragma once

#define GEMLET_TIER dotprod

#include "kernels/simd/sdot.h"

namespace gemlet::kernels {
namespace {

inline int8x16_t without_zero(VI weight) { return vreinterpretq_s8_s32((int32x4_t)(weight ^ (int32_t)0x80808080)); }

// Integer dot products: sums[output] += 4 columns of (weight - 128) times the 4 bytes at x.
struct Q8Dot {
  static VI start(int32_t) { return VI{}; }
  static VI add(VI sums, VI weight, const uint8_t* x) {
    return (VI)vdotq_s32((int32x4_t)sums, without_zero(weight), splat_columns(x));
  }
  template <int kLane>
  static VI add_lane(VI sums, VI weight, const uint8_t* x) {
    return (VI)vdotq_laneq_s32((int32x4_t)sums, without_zero(weight), sixteen_columns(x), kLane);
  }
  static VI total(VI sums, int32_t) { return sums; }
};

// For weights of 8 bits and any bytes.
struct ByteDot : Q8Dot {
  static constexpr bool kSubtractsZero = true;
};

}  // namespace
}  // namespace gemlet::kernels
