// AVX-512 and VNNI: vpdpbusd multiplies 64 pairs of bytes. See avx512.h.
#pragma once

#if !defined(GEMLET_TIER)
#define GEMLET_TIER avx512vnni
#endif

#include "kernels/simd/avx512.h"

namespace gemlet::kernels {
namespace {

// acc[lane] += sum over 4 bytes of a (unsigned) * b (signed), without saturation.
inline VI dot_bytes(VI acc, VI a, VI b) { return (VI)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b); }

}  // namespace
}  // namespace gemlet::kernels
