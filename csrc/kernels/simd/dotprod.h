// NEON with sdot. Only dotprod.cpp files include this header.
#pragma once

#define GEMLET_TIER dotprod

#include "kernels/simd/sdot.h"

namespace gemlet::kernels {
namespace {

// Integer dot products: sums[output] += 4 columns of the weight times the 4 bytes at x. Weights are stored + 128;
// `offset` compensates for that.
struct Q8Dot {
  static VI start(int32_t) { return VI{}; }
  static VI add(VI sums, VI weight, const uint8_t* x) {
    const int8x16_t w = vreinterpretq_s8_s32((int32x4_t)(weight ^ (int32_t)0x80808080));
    return (VI)vdotq_s32((int32x4_t)sums, w, splat_columns(x));
  }
  static VI total(VI sums, int32_t) { return sums; }
};

// Unsigned weights of 8 bits. sdot takes signed bytes, so a weight is split: w = (w - 128) + 128.
struct ByteDot {
  static VI add(VI sums, VI weight, const uint8_t* x) {
    const int8x16_t columns = splat_columns(x), w = vreinterpretq_s8_s32((int32x4_t)(weight ^ (int32_t)0x80808080));
    const int32x4_t all = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(64), columns);
    return (VI)vdotq_s32((int32x4_t)sums, w, columns) + (VI)vaddq_s32(all, all);
  }
};

}  // namespace
}  // namespace gemlet::kernels
