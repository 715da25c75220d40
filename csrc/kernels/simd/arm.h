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
constexpr int kTileSums = 8;   // sums of a tile; there are as many for odd columns or integers: half of the registers
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
// sum + a * b, rounded once. Whether a compiler makes one instruction of `sum += a * b` depends on the code around it.
inline VF multiply_add(VF sum, VF a, VF b) { return (VF)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b); }
inline VF max(VF a, VF b) { return (VF)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }

inline VI high_nibbles(VI bytes) {
  return (VI)vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32((int32x4_t)bytes), 4));
}

// 16 bytes, and the bytes of such a table at `index`, whose bytes are below 16.
inline VI sixteen_bytes(const uint8_t* p) { return (VI)vreinterpretq_s32_u8(vld1q_u8(p)); }
inline VI look_up(VI table, VI index) {
  return (VI)vreinterpretq_s32_u8(
      vqtbl1q_u8(vreinterpretq_u8_s32((int32x4_t)table), vreinterpretq_u8_s32((int32x4_t)index)));
}

// a + b in 16 bits, but 0 where a is 0.
inline VI add_where_not_zero(VI a, VI b) {
  const uint16x8_t words = (uint16x8_t)a;
  return (VI)vandq_u16(vtstq_u16(words, words), vaddq_u16(words, (uint16x8_t)b));
}

// The 4 bytes at x for every output.
inline int8x16_t splat_columns(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline int8x16_t sixteen_columns(const uint8_t* x) { return vreinterpretq_s8_u8(vld1q_u8(x)); }

}  // namespace
}  // namespace gemlet::kernels
