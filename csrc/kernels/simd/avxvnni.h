// AVX2 and AVX-VNNI: vpdpbusd on 8 lanes, in the VEX encoding of CPUs without AVX-512. See avx2.h.
#pragma once

#define GEMLET_TIER avxvnni

#include "kernels/simd/avx2.h"

namespace gemlet::kernels {
namespace {

// acc[lane] += sum over 4 bytes of a (unsigned) * b (signed), without saturation.
inline VI dot_bytes(VI acc, VI a, VI b) { return (VI)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b); }

}  // namespace
}  // namespace gemlet::kernels
