// NEON with sdot, usdot (unsigned weights) and usmmla, which multiplies 32 pairs of bytes: 2 outputs x 2 rows x 8
// columns. Only i8mm.cpp files include this header.
#pragma once

#define GEMLET_TIER i8mm

#include "kernels/simd/sdot.h"

namespace gemlet::kernels {
namespace {

// Integer dot products: sums[output] += 4 columns of the weight times the 4 bytes at x. Weights are stored + 128;
// `offset` compensates for that.
struct Q8Dot {
  static VI start(int32_t offset) { return (VI)vdupq_n_s32(offset); }
  static VI add(VI sums, VI weight, const uint8_t* x) {
    return (VI)vusdotq_s32((int32x4_t)sums, vreinterpretq_u8_s32((int32x4_t)weight), splat_columns(x));
  }
  template <int kLane>
  static VI add_lane(VI sums, VI weight, const uint8_t* x) {
    const uint8x16_t w = vreinterpretq_u8_s32((int32x4_t)weight);
    return (VI)vusdotq_laneq_s32((int32x4_t)sums, w, sixteen_columns(x), kLane);
  }
  static VI total(VI sums, int32_t) { return sums; }
};
using ByteDot = Q8Dot;

}  // namespace
}  // namespace gemlet::kernels
