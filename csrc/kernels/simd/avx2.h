// AVX2 + FMA + F16C: 8 floats a vector, 16 registers. Included by avx2.cpp files only; everything has internal linkage,
// so no instruction of this tier can leak into code that runs everywhere.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define GEMLET_TIER avx2

namespace gemlet::kernels {
namespace {

constexpr int kLanes = 8;    // floats in a vector
constexpr int kRowTile = 4;  // rows of x computed together: 2 x 4 sums + weights fit 16 registers
typedef float VF __attribute__((vector_size(32)));
typedef int32_t VI __attribute__((vector_size(32)));

inline VF load_f16(const void* p) { return (VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline VF max(VF a, VF b) { return (VF)_mm256_max_ps((__m256)a, (__m256)b); }

// acc[lane] += sum over 4 bytes of weight (unsigned, at most 15) * x (signed). Pair sums stay below 2^15.
inline VI dot_q4(VI acc, VI weight, VI x) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)weight, (__m256i)x);
  return acc + (VI)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
// The same for q8 stored as q + 128: pair sums of unsigned bytes would saturate, so the sign moves from the weight to
// x.
constexpr bool kQ8NeedsOffset = false;
inline VI dot_q8(VI acc, VI weight, VI x) {
  const __m256i w = _mm256_xor_si256((__m256i)weight, _mm256_set1_epi8((char)0x80));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8((__m256i)x, w));
  return acc + (VI)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

}  // namespace
}  // namespace gemlet::kernels
