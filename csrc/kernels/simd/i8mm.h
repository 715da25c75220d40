// Baseline, sdot, usdot (unsigned weights) and usmmla, which multiplies 32 byte pairs: 2 outputs x 2 rows x 8 columns.
// Included by i8mm.cpp files only.
#pragma once

#define GEMLET_TIER i8mm

#include "kernels/simd/arm.h"

namespace gemlet::kernels {
namespace {

// Integer dot products: sums[output] += 4 columns of a weight (stored + 128) * the 4 bytes at x. `offset` undoes the
// 128.
struct Q8Dot {
  static VI start(int32_t offset) { return (VI)vdupq_n_s32(offset); }
  static VI add(VI sums, VI weight, const uint8_t* x) {
    return (VI)vusdotq_s32((int32x4_t)sums, vreinterpretq_u8_s32((int32x4_t)weight), splat_columns(x));
  }
  static VI total(VI sums, int32_t) { return sums; }
};

}  // namespace
}  // namespace gemlet::kernels
