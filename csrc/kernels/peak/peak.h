// Measures the arithmetic peak of one core, to compare the matmul kernels with it: multiply-adds only on registers,
// with the tier's multiplication instructions. A kernel does at least `count` multiply-adds and returns how many it
// did.
#pragma once

#include <stdint.h>

namespace gemlet::kernels {

using peak_f32_fn = int64_t(int64_t count);
using peak_bf16_fn = int64_t(int64_t count);  // products of bf16, sums in float32
using peak_i8_fn = int64_t(int64_t count);    // products of bytes

}  // namespace gemlet::kernels
