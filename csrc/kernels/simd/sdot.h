// Products with sdot, for all tiers that have the instruction. The instruction multiplies 16 pairs of bytes and adds
// the products four by four.
#pragma once

#include "kernels/simd/arm.h"

namespace gemlet::kernels {
namespace {

// Weights of up to 6 bits, unsigned.
struct BitsDot {
  static VI add(VI sums, VI weight, const uint8_t* x) {
    return (VI)vdotq_s32((int32x4_t)sums, vreinterpretq_s8_s32((int32x4_t)weight), splat_columns(x));
  }
  template <int kLane>
  static VI add_lane(VI sums, VI weight, const uint8_t* x) {
    const int8x16_t w = vreinterpretq_s8_s32((int32x4_t)weight);
    return (VI)vdotq_laneq_s32((int32x4_t)sums, w, sixteen_columns(x), kLane);
  }
};

}  // namespace
}  // namespace gemlet::kernels
