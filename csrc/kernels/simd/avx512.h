// AVX-512 F, BW, VL and DQ: vectors of 16 floats, 32 registers. Only files of tiers that have these include this
// header. Everything has internal linkage, so none of these instructions can get into code that runs on every machine.
#pragma once

// At -O3 gcc 12 warns about values that its own headers leave undefined on purpose.
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
constexpr int kRowTile = 8;  // rows of x that are computed together: 2 x 8 sums and the weights fit 32 registers
constexpr int kManyRows = kRowTile;  // a panel is one vector, so more rows would need as many loads for each product
constexpr int kInt8Rows = 8;
constexpr int kBitsRows = 8;  // rows of x that the products of body_bits.h and body_rows.h compute together
constexpr int kTileSums = kRowTile;
// Weights this many bytes ahead are prefetched. 1,536 are too few, and 6,144 are not faster.
constexpr int64_t kAhead = 3072;
typedef float VF __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));

inline VF load_f16(const void* p) { return (VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline VI load_bytes(const void* p) { return (VI)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline VI load_signed_bytes(const void* p) { return (VI)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline VI high_nibbles(VI bytes) { return (bytes >> 4) & 0x0f0f0f0f; }  // x86 has no shift of bytes
// Returns sum + a * b, rounded once. For `sum += a * b` a compiler chooses between one and two roundings, and its
// choice depends on the code around.
inline VF multiply_add(VF sum, VF a, VF b) { return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum); }
inline VF max(VF a, VF b) { return (VF)_mm512_max_ps((__m512)a, (__m512)b); }

// sixteen_bytes() puts the same 16 bytes into every 128 bits. look_up() returns the bytes of such a table at the
// indices in `index`, which are below 16.
inline VI sixteen_bytes(const uint8_t* p) { return (VI)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p)); }
inline VI look_up(VI table, VI index) { return (VI)_mm512_shuffle_epi8((__m512i)table, (__m512i)index); }

// Adds a + b in lanes of 16 bits. Lanes in which a is 0 become 0.
inline VI add_where_not_zero(VI a, VI b) {
  return (VI)_mm512_maskz_add_epi16(_mm512_test_epi16_mask((__m512i)a, (__m512i)a), (__m512i)a, (__m512i)b);
}

// Sums of two products of bytes in 16 bits, saturated. a is unsigned, b is signed.
inline VI pair_sums(VI a, VI b) { return (VI)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
// Adds without letting gcc change the order of additions. gcc would compute all operands of a long sum first, and run
// out of registers.
inline VI add_i16(VI a, VI b) {
  VI sum = (VI)_mm512_add_epi16((__m512i)a, (__m512i)b);
  __asm__("" : "+v"(sum));
  return sum;
}
// Sums of two 16-bit numbers in 32 bits.
inline VI widen_pairs(VI pairs) { return (VI)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1)); }
inline VI abs_i8(VI a) { return (VI)_mm512_abs_epi8((__m512i)a); }
// The bytes of a, negated where the byte of b is negative. The result is undefined where b is 0.
inline VI with_sign_i8(VI a, VI b) {
  return (VI)_mm512_mask_sub_epi8((__m512i)a, _mm512_movepi8_mask((__m512i)b), _mm512_setzero_si512(), (__m512i)a);
}

}  // namespace
}  // namespace gemlet::kernels
