// The arithmetic peak of one core, to hold the matmul kernels against: multiply-adds on registers alone, with the
// instructions that the tier multiplies with. Each does at least `count` multiply-adds and returns how many it did.
#pragma once

#include <stdint.h>

namespace gemlet::kernels {

using peak_f32_fn = int64_t(int64_t count);
using peak_bf16_fn = int64_t(int64_t count);  // bf16 products summed in float32
using peak_i8_fn = int64_t(int64_t count);    // products of bytes

}  // namespace gemlet::kernels
