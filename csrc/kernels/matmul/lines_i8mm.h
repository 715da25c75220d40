// Byte products with usmmla: a 2 x 8 matrix of weights (2 outputs, 8 columns) times an 8 x 2 matrix of x (2 rows).
// Zipping two lines brings 8 columns of an output together; for q4 that happens before the halves of the bytes are
// separated. The sums keep the order of the instruction, (o0 r0, o0 r1, o1 r0, o1 r1), until the last block is done. A
// single row is multiplied line by line with sdot and usdot (lines_lanes.h).
#pragma once

#include "kernels/matmul/lines_lanes.h"
#include "kernels/matmul/panels.h"

namespace gemlet::kernels {
namespace {

inline uint8x16_t zip_low(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}
inline uint8x16_t zip_high(uint8x16_t a, uint8x16_t b) {
  return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
}

// Returns the numbers at the two addresses, and then both again.
inline uint32x4_t twice(const void* first, const void* second) {
  uint32_t a, b;
  __builtin_memcpy(&a, first, sizeof a);
  __builtin_memcpy(&b, second, sizeof b);
  return vreinterpretq_u32_u64(vdupq_n_u64(a | (uint64_t)b << 32));
}

// A tile whose rows are multiplied in pairs by Lines::dot_pairs.
template <typename Lines>
struct PairTile {
  static constexpr bool kPairs = true;
  template <int R, int H>
  static void pair_tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    constexpr int P = (R + 1) / 2;
    const uint8_t* x[2 * P];
    const float* scales[2 * P];
    const int32_t* offsets[2 * P];
    for (int r = 0; r < 2 * P; ++r) {  // a last row without a partner is paired with itself
      x[r] = (const uint8_t*)a.x + (row + (r < R ? r : R - 1)) * a.x_stride;
      scales[r] = (const float*)(x[r] + a.cols);
      offsets[r] = (const int32_t*)(x[r] + a.cols + a.cols / kBlock * 4);
    }
    VF tiles[P][H][2] = {};
    const int64_t blocks = a.cols / kBlock;
    for (int64_t b = 0; b < blocks; b += 2, panel += kScaleBytes + 2 * Lines::kBlockBytes) {
      for (int64_t half = 0; half < 2; ++half) {
        int32x4_t dots[P][H][2];
        for (int p = 0; p < P; ++p) {
          const uint32x4_t start = twice(offsets[2 * p] + b + half, offsets[2 * p + 1] + b + half);
          for (int h = 0; h < H; ++h) dots[p][h][0] = dots[p][h][1] = vreinterpretq_s32_u32(start);
        }
        Lines::template dot_pairs<P, H>(panel + kScaleBytes + half * Lines::kBlockBytes + h0 * kLanes * 4, x, dots);
        for (int h = 0; h < H; ++h) {
          const float32x4_t scale = (float32x4_t)load_f16(panel + half * (kScaleBytes / 2) + (h0 + h) * kLanes * 2);
          const VF outputs[2] = {(VF)vzip1q_f32(scale, scale), (VF)vzip2q_f32(scale, scale)};
          for (int p = 0; p < P; ++p) {
            const VF both = (VF)vreinterpretq_f32_u32(twice(scales[2 * p] + b + half, scales[2 * p + 1] + b + half));
            for (int i = 0; i < 2; ++i) {
              tiles[p][h][i] = multiply_add(tiles[p][h][i], to_float((VI)dots[p][h][i]), (VF)(outputs[i] * both));
            }
          }
        }
        for (int r = 0; r < 2 * P; ++r) x[r] += kBlock;
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int h = 0; h < H; ++h) {
        const float32x4_t first = (float32x4_t)tiles[r / 2][h][0], second = (float32x4_t)tiles[r / 2][h][1];
        sums[r][h] += (VF)(r % 2 == 0 ? vuzp1q_f32(first, second) : vuzp2q_f32(first, second));
      }
    }
  }
};

// 16 columns of two rows, as two operands of 8 columns each.
struct RowPair {
  int8x16_t columns[2];
};
inline RowPair load_pair(const uint8_t* row0, const uint8_t* row1) {
  const int64x2_t a = vreinterpretq_s64_u8(vld1q_u8(row0)), b = vreinterpretq_s64_u8(vld1q_u8(row1));
  return {{vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))}};
}

template <int Lane, int R, int H>
inline void q8_line(const uint8_t* line, const int8x16_t (&x)[R], VI (&dots)[R][H]) {
  for (int h = 0; h < H; ++h) {
    const uint8x16_t w = vld1q_u8(line + h * 16);
    for (int r = 0; r < R; ++r) dots[r][h] = (VI)vusdotq_laneq_s32((int32x4_t)dots[r][h], w, x[r], Lane);
  }
}
struct Q8Lines : Q8LaneLines, PairTile<Q8Lines> {
  static constexpr bool kNeedsOffset = true;
  // Adds to dots[p][h][i] the products of rows 2p and 2p + 1 with outputs 2i and 2i + 1 of vector h.
  template <int P, int H>
  static void dot_pairs(const uint8_t* lines, const uint8_t* const (&x)[2 * P], int32x4_t (&dots)[P][H][2]) {
    for (int half = 0; half < 2; ++half) {
      RowPair rows[P];
      for (int p = 0; p < P; ++p) rows[p] = load_pair(x[2 * p] + 16 * half, x[2 * p + 1] + 16 * half);
      for (int k = 0; k < 2; ++k, lines += 2 * kLineBytes) {
        for (int h = 0; h < H; ++h) {
          const uint8x16_t a = vld1q_u8(lines + h * 16), b = vld1q_u8(lines + kLineBytes + h * 16);
          const uint8x16_t w0 = zip_low(a, b), w1 = zip_high(a, b);
          for (int p = 0; p < P; ++p) {
            dots[p][h][0] = vusmmlaq_s32(dots[p][h][0], w0, rows[p].columns[k]);
            dots[p][h][1] = vusmmlaq_s32(dots[p][h][1], w1, rows[p].columns[k]);
          }
        }
      }
    }
  }
};

struct Q4Lines : Q4LaneLines, PairTile<Q4Lines> {
  template <int P, int H>
  static void dot_pairs(const uint8_t* lines, const uint8_t* const (&x)[2 * P], int32x4_t (&dots)[P][H][2]) {
    RowPair first[P], second[P];
    for (int p = 0; p < P; ++p) {
      first[p] = load_pair(x[2 * p], x[2 * p + 1]);
      second[p] = load_pair(x[2 * p] + 16, x[2 * p + 1] + 16);
    }
    for (int k = 0; k < 2; ++k, lines += 2 * kLineBytes) {
      for (int h = 0; h < H; ++h) {
        const uint8x16_t a = vld1q_u8(lines + h * 16), b = vld1q_u8(lines + kLineBytes + h * 16);
        const uint8x16_t w[2] = {zip_low(a, b), zip_high(a, b)};
        for (int i = 0; i < 2; ++i) {
          const uint8x16_t low = vandq_u8(w[i], vdupq_n_u8(15)), high = vshrq_n_u8(w[i], 4);
          for (int p = 0; p < P; ++p) dots[p][h][i] = vusmmlaq_s32(dots[p][h][i], low, first[p].columns[k]);
          for (int p = 0; p < P; ++p) dots[p][h][i] = vusmmlaq_s32(dots[p][h][i], high, second[p].columns[k]);
        }
      }
    }
  }
};

}  // namespace
}  // namespace gemlet::kernels
