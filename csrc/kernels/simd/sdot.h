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
};

}  // namespace
}  // namespace gemlet::kernels
