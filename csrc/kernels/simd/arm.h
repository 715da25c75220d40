// Advanced SIMD of 64-bit Arm: vectors of 4 floats, 32 registers. The headers of its tiers include this one; the tiers
// differ in how they multiply bytes (kernels/matmul/lines_*.h). Everything has internal linkage.
#pragma once

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

namespace gemlet::kernels {
namespace {

constexpr int kLanes = 4;            // floats in a vector
constexpr int kRowTile = 4;          // rows of x that are computed together
constexpr int kManyRows = kRowTile;  // no float tiles in two passes, because gcc would keep more sums in memory
constexpr int kBitsRows = kRowTile;
// The sums of a tile. A tile has as many sums again for odd columns or integers, so they fill half of the registers.
constexpr int kTileSums = 8;
constexpr int64_t kAhead = 0;  // nothing is prefetched, because no real processor was at hand to measure it
typedef float VF __attribute__((vector_size(16)));
typedef int32_t VI __attribute__((vector_size(16)));

inline uint64_t first_four(const void* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return four;
}
inline VF load_f16(const void* p) {
  float16x4_t half;
  __builtin_memcpy(&half, p, sizeof half);
  return (VF)vcvt_f32_f16(half);
}
inline VI load_bytes(const void* p) {
  const uint32x4_t four = {(uint32_t)first_four(p), 0, 0, 0};
  const uint8x16_t places = {0, 255, 255, 255, 1, 255, 255, 255, 2, 255, 255, 255, 3, 255, 255, 255};
  return (VI)vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(four), places));  // 0 for places that are not there
}
inline VI load_signed_bytes(const void* p) { return (VI)vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(first_four(p))))); }
// Returns sum + a * b, rounded once. For `sum += a * b` a compiler chooses between one and two roundings, and its
// choice depends on the code around.
inline VF multiply_add(VF sum, VF a, VF b) { return (VF)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b); }
inline VF max(VF a, VF b) { return (VF)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }

inline VI high_nibbles(VI bytes) {
  return (VI)vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32((int32x4_t)bytes), 4));
}

// sixteen_bytes() loads a table of 16 bytes. look_up() returns the bytes of such a table at the indices in
// `index`, which are below 16.
inline VI sixteen_bytes(const uint8_t* p) { return (VI)vreinterpretq_s32_u8(vld1q_u8(p)); }
inline VI look_up(VI table, VI index) {
  return (VI)vreinterpretq_s32_u8(
      vqtbl1q_u8(vreinterpretq_u8_s32((int32x4_t)table), vreinterpretq_u8_s32((int32x4_t)index)));
}

// Adds a + b in lanes of 16 bits. Lanes in which a is 0 become 0.
inline VI add_where_not_zero(VI a, VI b) {
  const uint16x8_t words = (uint16x8_t)a;
  return (VI)vandq_u16(vtstq_u16(words, words), vaddq_u16(words, (uint16x8_t)b));
}

// Repeats the 4 bytes at x for every output.
inline int8x16_t splat_columns(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline int8x16_t sixteen_columns(const uint8_t* x) { return vreinterpretq_s8_u8(vld1q_u8(x)); }

}  // namespace
}  // namespace gemlet::kernels
