// Kernels that measure the arithmetic peak of one core. The benchmarks compare the matmul kernels with it. A peak
// kernel does multiply-adds on registers only, with the multiplication instructions of its tier. It does at least
// `count` multiply-adds and returns their number.
#pragma once

#include <stdint.h>

namespace gemlet::kernels {

using peak_f32_fn = int64_t(int64_t count);
using peak_bf16_fn = int64_t(int64_t count);  // products of bf16, sums in float32
using peak_i8_fn = int64_t(int64_t count);    // products of bytes

}  // namespace gemlet::kernels
