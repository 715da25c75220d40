#pragma once

#include "kernels/peak/body.h"

namespace gemlet::kernels::GEMLET_TIER {

int64_t peak_i8(int64_t count) {
  const uint8_t four[4] = {1, 1, 1, 1};
  return peak<12, VI>(count, 4 * kLanes, splat_i32(0x01010101), [&](VI sum, VI x) { return dot_bytes(sum, x, four); });
}

}  // namespace gemlet::kernels::GEMLET_TIER
