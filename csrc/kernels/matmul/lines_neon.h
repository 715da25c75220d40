// Byte products without dot product instructions. smlal multiplies 8 pairs of bytes, 2 outputs x 4 columns, and adds
// them to sums of 16 bits. So a vector of 4 outputs has two vectors of sums (`low`: outputs 0 and 1, `high`: 2 and 3)
// until pairwise additions bring its columns together.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

struct Sums16 {
  int16x8_t low, high;
};
inline Sums16 multiply(int8x16_t w, int8x16_t x) {
  return {vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)};
}
inline Sums16 multiply_add(Sums16 sums, int8x16_t w, int8x16_t x) {
  return {vmlal_s8(sums.low, vget_low_s8(w), vget_low_s8(x)), vmlal_high_s8(sums.high, w, x)};
}

// |w| is at most 128 and |x| at most 127, so a sum of two products fits 16 bits.
struct Q8Lines {
  static constexpr int64_t kBlockBytes = kQ8BlockBytes;
  static constexpr bool kNeedsOffset = false;
  static constexpr bool kPairs = false;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    int32x4_t low[R][H] = {}, high[R][H] = {};
    for (int j = 0; j < 8; j += 2) {
      for (int h = 0; h < H; ++h) {
        const uint8_t* at = lines + j * kLineBytes + h * 16;
        const int8x16_t w0 = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at), vdupq_n_u8(0x80)));
        const int8x16_t w1 = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + kLineBytes), vdupq_n_u8(0x80)));
        for (int r = 0; r < R; ++r) {
          Sums16 sums = multiply(w0, splat_columns(x[r] + 4 * j));
          sums = multiply_add(sums, w1, splat_columns(x[r] + 4 * j + 4));
          low[r][h] = vpadalq_s16(low[r][h], sums.low);
          high[r][h] = vpadalq_s16(high[r][h], sums.high);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < H; ++h) dots[r][h] += (VI)vpaddq_s32(low[r][h], high[r][h]);
    }
  }
};

// w is at most 15, so sums of 8 and of 16 products fit 16 bits.
struct Q4Lines {
  static constexpr int64_t kBlockBytes = kQ4BlockBytes;
  static constexpr bool kNeedsOffset = true;
  static constexpr bool kPairs = false;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    Sums16 sums[R][H] = {};
    for (int j = 0; j < 4; ++j) {
      for (int h = 0; h < H; ++h) {
        const uint8x16_t w = vld1q_u8(lines + j * kLineBytes + h * 16);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(w, 4));
        for (int r = 0; r < R; ++r) {
          sums[r][h] = multiply_add(sums[r][h], low, splat_columns(x[r] + 4 * j));
          sums[r][h] = multiply_add(sums[r][h], high, splat_columns(x[r] + 16 + 4 * j));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < H; ++h) {
        const int16x8_t pairs = vpaddq_s16(sums[r][h].low, sums[r][h].high);
        dots[r][h] = (VI)vpadalq_s16((int32x4_t)dots[r][h], pairs);
      }
    }
  }
};

}  // namespace
}  // namespace gemlet::kernels
