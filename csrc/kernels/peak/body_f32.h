#pragma once

#include "kernels/peak/body.h"

namespace gemlet::kernels::GEMLET_TIER {

int64_t peak_f32(int64_t count) {
  const VF half = splat(0.5f);
  return peak<12, VF>(count, kLanes, half, [&](VF sum, VF x) { return sum + x * half; });
}

}  // namespace gemlet::kernels::GEMLET_TIER
