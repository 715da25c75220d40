// NEON, which every 64-bit Arm processor has (armv8-a). Only neon.cpp files include this header.
#pragma once

#define GEMLET_TIER neon

#include "kernels/simd/arm.h"

namespace gemlet::kernels {
namespace {

// Integer dot products: sums[output] += 4 columns of the weight times the 4 bytes at x. Weights are stored + 128;
// `offset` compensates for that.
struct Q8Dot {
  static VI start(int32_t) { return VI{}; }
  static VI add(VI sums, VI weight, const uint8_t* x) {
    const int8x16_t w = vreinterpretq_s8_s32((int32x4_t)(weight ^ (int32_t)0x80808080));
    const int8x16_t columns = splat_columns(x);
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(columns)), high = vmull_high_s8(w, columns);
    return (VI)vpadalq_s16((int32x4_t)sums,
                           vpaddq_s16(low, high));  // |w x| is at most 128 * 127: a sum of two fits 16 bits
  }
  static VI total(VI sums, int32_t) { return sums; }
};

// Weights of up to 6 bits, unsigned.
struct BitsDot {
  static VI add(VI sums, VI weight, const uint8_t* x) {
    const int8x16_t w = vreinterpretq_s8_s32((int32x4_t)weight), columns = splat_columns(x);
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(columns)), high = vmull_high_s8(w, columns);
    return (VI)vpadalq_s16((int32x4_t)sums, vpaddq_s16(low, high));
  }
};

// Unsigned weights of 8 bits times any bytes. The two halves of a weight are multiplied separately. The sums of pairs
// are at most 2 * 15 * 128.
struct ByteDot {
  static VI add(VI sums, VI weight, const uint8_t* x) {
    const VI high = BitsDot::add(VI{}, (weight >> 4) & 0x0f0f0f0f, x);
    return BitsDot::add(sums, weight & 0x0f0f0f0f, x) + (high << 4);
  }
};

}  // namespace
}  // namespace gemlet::kernels
