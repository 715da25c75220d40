#include "kernels/simd/avx512bf16.h"
//
#include "kernels/peak/body.h"

namespace gemlet::kernels::avx512bf16 {

int64_t peak_bf16(int64_t count) {
  const VI ones = splat_i32(0x3f803f80);
  return peak<12, VF>(count, 2 * kLanes, ones, [&](VF sum, VI x) { return dot_bf16(sum, ones, x); });
}

}  // namespace gemlet::kernels::avx512bf16
