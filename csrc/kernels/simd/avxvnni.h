// AVX2 with AVX-VNNI: vpdpbusd on 8 lanes, in the VEX encoding that CPUs without AVX-512 have. See avx2.h.
#pragma once

#define GEMLET_TIER avxvnni

#include "kernels/simd/avx2.h"

namespace gemlet::kernels {
namespace {

// acc[lane] += the 4 bytes of a (unsigned) times the 4 bytes at b (signed), without saturation.
inline VI dot_bytes(VI acc, VI a, const uint8_t* b) {
  int32_t four;
  __builtin_memcpy(&four, b, 4);
#if defined(GEMLET_EMULATE_AVXVNNI)
  const VI x = four - VI{};
  for (int byte = 0; byte < 4; ++byte) acc += ((a >> (8 * byte)) & 255) * ((x << (24 - 8 * byte)) >> 24);
  return acc;
#else
  return (VI)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, _mm256_set1_epi32(four));
#endif
}

}  // namespace
}  // namespace gemlet::kernels
