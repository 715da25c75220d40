// AVX-512 with BF16: vdpbf16ps multiplies 32 pairs of bf16. See avx512.h.
#pragma once

#define GEMLET_TIER avx512bf16

#include "kernels/simd/avx512vnni.h"

namespace gemlet::kernels {
namespace {

// acc[lane] += the sum of the lane's two products of bf16. Rounds to nearest every time; subnormal numbers count as
// zero.
inline VF dot_bf16(VF acc, VI a, VI b) { return (VF)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }

}  // namespace
}  // namespace gemlet::kernels
