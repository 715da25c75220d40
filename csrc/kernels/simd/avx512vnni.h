// AVX-512 with VNNI: vpdpbusd multiplies 64 pairs of bytes. See avx512.h.
#pragma once

#if !defined(GEMLET_TIER)
#define GEMLET_TIER avx512vnni
#endif

#include "kernels/simd/avx512.h"

namespace gemlet::kernels {
namespace {

// acc[lane] += the 4 bytes of a (unsigned) times the 4 bytes at b (signed), without saturation. This is assembly
// because gcc 12 does not let the instruction read the 4 bytes from memory.
inline VI dot_bytes(VI acc, VI a, const uint8_t* b) {
  typedef int32_t Four __attribute__((may_alias, aligned(1)));
  __asm__ __inline__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(a), "m"(*(const Four*)b));
  return acc;
}

}  // namespace
}  // namespace gemlet::kernels
