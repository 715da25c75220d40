// Byte products with sdot and usdot, for one row at a time. Both take 4 columns of x from any lane of a register, so 16
// columns of a row need one load.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

// Each tier defines this function, which adds the products of 4 columns of q8. Lane is a template parameter because the
// instruction encodes the lane.
template <int Lane, int R, int H>
inline void q8_line(const uint8_t* line, const int8x16_t (&x)[R], VI (&dots)[R][H]);

struct Q8LaneLines {
  static constexpr int64_t kBlockBytes = kQ8BlockBytes;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    for (int half = 0; half < 2; ++half, lines += 4 * kLineBytes) {
      int8x16_t columns[R];
      for (int r = 0; r < R; ++r) columns[r] = vreinterpretq_s8_u8(vld1q_u8(x[r] + 16 * half));
      q8_line<0>(lines, columns, dots);
      q8_line<1>(lines + kLineBytes, columns, dots);
      q8_line<2>(lines + 2 * kLineBytes, columns, dots);
      q8_line<3>(lines + 3 * kLineBytes, columns, dots);
    }
  }
};

template <int Lane, int R, int H>
inline void q4_line(const uint8_t* line, const int8x16_t (&first)[R], const int8x16_t (&second)[R], VI (&dots)[R][H]) {
  for (int h = 0; h < H; ++h) {
    const uint8x16_t w = vld1q_u8(line + h * 16);
    const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(15)));
    const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(w, 4));
    for (int r = 0; r < R; ++r) dots[r][h] = (VI)vdotq_laneq_s32((int32x4_t)dots[r][h], low, first[r], Lane);
    for (int r = 0; r < R; ++r) dots[r][h] = (VI)vdotq_laneq_s32((int32x4_t)dots[r][h], high, second[r], Lane);
  }
}
struct Q4LaneLines {
  static constexpr int64_t kBlockBytes = kQ4BlockBytes;
  static constexpr bool kNeedsOffset = true;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    int8x16_t first[R], second[R];
    for (int r = 0; r < R; ++r) {
      first[r] = vreinterpretq_s8_u8(vld1q_u8(x[r]));
      second[r] = vreinterpretq_s8_u8(vld1q_u8(x[r] + 16));
    }
    q4_line<0>(lines, first, second, dots);
    q4_line<1>(lines + kLineBytes, first, second, dots);
    q4_line<2>(lines + 2 * kLineBytes, first, second, dots);
    q4_line<3>(lines + 3 * kLineBytes, first, second, dots);
  }
};

}  // namespace
}  // namespace gemlet::kernels
