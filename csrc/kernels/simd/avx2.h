// AVX2, FMA and F16C: vectors of 8 floats, 16 registers. Only files of tiers that have these include this header.
// Everything has internal linkage, so none of these instructions can get into code that runs on every machine.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#if !defined(GEMLET_TIER)
#define GEMLET_TIER avx2
#endif

namespace gemlet::kernels {
namespace {

constexpr int kLanes = 8;     // floats in a vector
constexpr int kRowTile = 4;   // rows of x that are computed together: 2 x 4 sums and the weights fit 16 registers
constexpr int kManyRows = 6;  // rows of float tiles in two passes: 12 sums, the weights and one x fit 16 registers
constexpr int kInt8Rows = 4;
constexpr int kBitsRows = 4;  // rows of x that the products of body_bits.h and body_rows.h compute together
constexpr int kTileSums = kRowTile;
// Weights this many bytes ahead are prefetched. 1,536 are too few, and 6,144 are not faster.
constexpr int64_t kAhead = 3072;
typedef float VF __attribute__((vector_size(32)));
typedef int32_t VI __attribute__((vector_size(32)));

inline VF load_f16(const void* p) { return (VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline VI load_bytes(const void* p) { return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline VI load_signed_bytes(const void* p) { return (VI)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline VI high_nibbles(VI bytes) { return (bytes >> 4) & 0x0f0f0f0f; }  // x86 has no shift of bytes
// Returns sum + a * b, rounded once. For `sum += a * b` a compiler chooses between one and two roundings, and its
// choice depends on the code around.
inline VF multiply_add(VF sum, VF a, VF b) { return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum); }
inline VF max(VF a, VF b) { return (VF)_mm256_max_ps((__m256)a, (__m256)b); }

// sixteen_bytes() puts the same 16 bytes into every 128 bits. look_up() returns the bytes of such a table at the
// indices in `index`, which are below 16.
inline VI sixteen_bytes(const uint8_t* p) {
  return (VI)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
}
inline VI look_up(VI table, VI index) { return (VI)_mm256_shuffle_epi8((__m256i)table, (__m256i)index); }

// Adds a + b in lanes of 16 bits. Lanes in which a is 0 become 0.
inline VI add_where_not_zero(VI a, VI b) {
  const __m256i is_zero = _mm256_cmpeq_epi16((__m256i)a, _mm256_setzero_si256());
  return (VI)_mm256_andnot_si256(is_zero, _mm256_add_epi16((__m256i)a, (__m256i)b));
}

// Sums of two products of bytes in 16 bits, saturated. a is unsigned, b is signed.
inline VI pair_sums(VI a, VI b) { return (VI)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
// Adds without letting gcc change the order of additions. gcc would compute all operands of a long sum first, and run
// out of registers.
inline VI add_i16(VI a, VI b) {
  VI sum = (VI)_mm256_add_epi16((__m256i)a, (__m256i)b);
  __asm__("" : "+x"(sum));
  return sum;
}
// Sums of two 16-bit numbers in 32 bits.
inline VI widen_pairs(VI pairs) { return (VI)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1)); }
inline VI abs_i8(VI a) { return (VI)_mm256_abs_epi8((__m256i)a); }
// The bytes of a, negated where the byte of b is negative. The result is undefined where b is 0.
inline VI with_sign_i8(VI a, VI b) { return (VI)_mm256_sign_epi8((__m256i)a, (__m256i)b); }

}  // namespace
}  // namespace gemlet::kernels
