// AVX-512 F/BW/VL/DQ + VNNI: 16 floats a vector, 32 registers, vpdpbusd multiplies 64 byte pairs. Included by
// avx512vnni.cpp files only; everything has internal linkage, so no instruction of this tier can leak into code that
// runs everywhere.
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

#define GEMLET_TIER avx512vnni

namespace gemlet::kernels {
namespace {

constexpr int kLanes = 16;   // floats in a vector
constexpr int kRowTile = 8;  // rows of x computed together: 2 x 8 sums + weights fit 32 registers
typedef float VF __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));

inline VF load_f16(const void* p) { return (VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline VF max(VF a, VF b) { return (VF)_mm512_max_ps((__m512)a, (__m512)b); }

// acc[lane] += sum over 4 bytes of weight (unsigned) * x (signed), without saturation.
inline VI dot_q4(VI acc, VI weight, VI x) { return (VI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)weight, (__m512i)x); }
constexpr bool kQ8NeedsOffset = true;
inline VI dot_q8(VI acc, VI weight, VI x) { return dot_q4(acc, weight, x); }

}  // namespace
}  // namespace gemlet::kernels
