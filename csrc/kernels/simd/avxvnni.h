// AVX2 and AVX-VNNI: vpdpbusd on 8 lanes, in the VEX encoding of CPUs without AVX-512. See avx2.h.
#pragma once

#define GEMLET_TIER avxvnni

#include "kernels/simd/avx2.h"

namespace gemlet::kernels {
namespace {

// acc[lane] += sum over 4 bytes of a (unsigned) * the 4 bytes at b (signed), without saturation.
inline VI dot_bytes(VI acc, VI a, const uint8_t* b) {
  int32_t four;
  __builtin_memcpy(&four, b, 4);
  return (VI)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, _mm256_set1_epi32(four));
}

}  // namespace
}  // namespace gemlet::kernels
