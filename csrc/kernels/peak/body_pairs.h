#pragma once

#include "kernels/peak/body.h"

namespace gemlet::kernels::GEMLET_TIER {

// Measures the multiplications that the q4 kernel uses without VNNI.
int64_t peak_i8(int64_t count) {
  const VI ones = splat_i32(0x01010101);
  return peak<12, VI>(count, 4 * kLanes, ones, [&](VI sum, VI x) { return add_i16(sum, pair_sums(ones, x)); });
}

}  // namespace gemlet::kernels::GEMLET_TIER
