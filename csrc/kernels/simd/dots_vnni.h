// Integer dot products of a block of 32 columns with VNNI. Weights are unsigned, as they are stored; x points to 4
// bytes. `offset` is the offset that quantize_i8 computes.
#pragma once

#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

struct Q4Dot {
  static VI start(int32_t offset) { return splat_i32(offset); }
  static VI add(VI sums, VI weight, const uint8_t* x) { return dot_bytes(sums, weight, x); }
  static VI total(VI sums, int32_t) { return sums; }
};
using Q8Dot = Q4Dot;
using BitsDot = Q4Dot;
using ByteDot = Q4Dot;

}  // namespace
}  // namespace gemlet::kernels
