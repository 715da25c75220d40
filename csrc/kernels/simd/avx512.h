// AVX-512 F/BW/VL/DQ: 16 floats a vector, 32 registers. Included by files of tiers that have it only; everything has
// internal linkage, so no instruction of this tier can leak into code that runs everywhere.
#pragma once

// gcc 12 warns about its own headers' deliberately undefined values at -O3.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <stdint.h>

#if !defined(GEMLET_TIER)
#define GEMLET_TIER avx512
#endif

namespace gemlet::kernels {
namespace {

constexpr int kLanes = 16;   // floats in a vector
constexpr int kRowTile = 8;  // rows of x computed together: 2 x 8 sums + weights fit 32 registers
constexpr int kInt8Rows = 8;
constexpr int kTileSums = kRowTile;
typedef float VF __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));

inline VF load_f16(const void* p) { return (VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline VF max(VF a, VF b) { return (VF)_mm512_max_ps((__m512)a, (__m512)b); }

// 16-bit sums of two products of bytes, a unsigned and b signed, saturated.
inline VI pair_sums(VI a, VI b) { return (VI)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
// The order of additions is kept: gcc would first compute all operands of a long sum, more than there are registers.
inline VI add_i16(VI a, VI b) {
  VI sum = (VI)_mm512_add_epi16((__m512i)a, (__m512i)b);
  __asm__("" : "+v"(sum));
  return sum;
}
// 32-bit sums of two 16-bit numbers.
inline VI widen_pairs(VI pairs) { return (VI)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1)); }
inline VI abs_i8(VI a) { return (VI)_mm512_abs_epi8((__m512i)a); }
// Bytes of a, negated where that of b is negative. What it gives where b is 0 is not said.
inline VI with_sign_i8(VI a, VI b) {
  return (VI)_mm512_mask_sub_epi8((__m512i)a, _mm512_movepi8_mask((__m512i)b), _mm512_setzero_si512(), (__m512i)a);
}

}  // namespace
}  // namespace gemlet::kernels
