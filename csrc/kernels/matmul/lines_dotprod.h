// Byte products with sdot.
#pragma once

#include "kernels/matmul/lines_lanes.h"

namespace gemlet::kernels {
namespace {

template <int Lane, int R, int H>
inline void q8_line(const uint8_t* line, const int8x16_t (&x)[R], VI (&dots)[R][H]) {
  for (int h = 0; h < H; ++h) {
    const int8x16_t w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(line + h * 16), vdupq_n_u8(0x80)));
    for (int r = 0; r < R; ++r) dots[r][h] = (VI)vdotq_laneq_s32((int32x4_t)dots[r][h], w, x[r], Lane);
  }
}
struct Q8Lines : Q8LaneLines {
  static constexpr bool kNeedsOffset = false;
  static constexpr bool kPairs = false;
};

struct Q4Lines : Q4LaneLines {
  static constexpr bool kPairs = false;
};

}  // namespace
}  // namespace gemlet::kernels
