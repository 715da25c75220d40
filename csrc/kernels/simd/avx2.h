// AVX2 + FMA + F16C: 8 floats a vector, 16 registers. Included by files of tiers that have it only; everything has
// internal linkage, so no instruction of this tier can leak into code that runs everywhere.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#if !defined(GEMLET_TIER)
#define GEMLET_TIER avx2
#endif

namespace gemlet::kernels {
namespace {

constexpr int kLanes = 8;    // floats in a vector
constexpr int kRowTile = 4;  // rows of x computed together: 2 x 4 sums + weights fit 16 registers
constexpr int kInt8Rows = 4;
constexpr int kTileSums = kRowTile;
typedef float VF __attribute__((vector_size(32)));
typedef int32_t VI __attribute__((vector_size(32)));

inline VF load_f16(const void* p) { return (VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline VF max(VF a, VF b) { return (VF)_mm256_max_ps((__m256)a, (__m256)b); }

// 16-bit sums of two products of bytes, a unsigned and b signed, saturated.
inline VI pair_sums(VI a, VI b) { return (VI)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
// The order of additions is kept: gcc would first compute all operands of a long sum, more than there are registers.
inline VI add_i16(VI a, VI b) {
  VI sum = (VI)_mm256_add_epi16((__m256i)a, (__m256i)b);
  __asm__("" : "+x"(sum));
  return sum;
}
// 32-bit sums of two 16-bit numbers.
inline VI widen_pairs(VI pairs) { return (VI)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1)); }
inline VI abs_i8(VI a) { return (VI)_mm256_abs_epi8((__m256i)a); }
// Bytes of a, negated where that of b is negative. What it gives where b is 0 is not said.
inline VI with_sign_i8(VI a, VI b) { return (VI)_mm256_sign_epi8((__m256i)a, (__m256i)b); }

}  // namespace
}  // namespace gemlet::kernels
