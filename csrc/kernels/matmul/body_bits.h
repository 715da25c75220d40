// Products with int8 activations and weights in q5, q4k, q5k and q6k, on every tier with vectors. A dots_*.h or a
// header of Arm is included before and defines BitsDot, which multiplies unsigned weights of up to 6 bits.
#pragma once

#include "kernels/matmul/panels.h"
#include "kernels/matmul/row_pointers.h"

namespace gemlet::kernels {
namespace {

constexpr int kNibbleLines = 4;

// Shifts bit `from` of each byte to the place `to`, together with the bits above it, and keeps the bits of `mask`.
GEMLET_INLINE VI moved(VI bits, int from, int to, int32_t mask) {
  return (from < to ? bits << (to - from) : bits >> (from - to)) & mask;
}

// The sums of R rows for one vector of outputs. A Dot without VNNI adds up sums of pairs in 16 bits. widen() adds these
// sums to sums of 32 bits. It must be called after at most 8 additions with weights of 4 bits, 4 with weights of 5
// bits, or 2 with weights of 6 bits.
template <typename Dot, int R>
struct RowSums {
  static constexpr bool kPairs = requires(VI sums) { Dot::widened(sums); };
  VI (&dots)[R];
  VI pairs[R] = {};

  // Adds the products with the four columns that begin at x(r) + from + column. `add` is that of for_columns(), which
  // knows `column`.
  template <typename X, typename Add>
  GEMLET_INLINE void add(VI weights, const X& x, int from, int column, const Add& add) {
    for (int r = 0; r < R; ++r) {
      if constexpr (kPairs) {
        pairs[r] = Dot::add_pairs(pairs[r], weights, x(r) + from + column);
      } else {
        dots[r] = add(dots[r], weights, x(r) + from);
      }
    }
  }
  GEMLET_INLINE void widen() {
    for (int r = 0; r < R && kPairs; ++r) {
      if constexpr (kPairs) dots[r] += Dot::widened(pairs[r]);
      pairs[r] = VI{};
    }
  }
};

// The products of a block with weights of four bits. The classes for five and six bits have the same function:
// dot<R>(lines, x, part, dots) adds the products of one part of a block to `dots`. The x of row r for this part
// begins at x(r).
struct FourBits {
  static constexpr int64_t kBlockBytes = kQ4BlockBytes;
  static constexpr int kParts = 1;  // parts of a block that have a scale of their own
  template <int R, typename X>
  static GEMLET_INLINE void dot(const uint8_t* lines, const X& x, int, VI (&dots)[R]) {
    RowSums<BitsDot, R> sums{dots};
    for_columns<BitsDot, kNibbleLines, four_columns>([&](int j, auto add) GEMLET_INLINE_LAMBDA {
      const VI w = load_i32(lines + j * kLineBytes);
      sums.add(w & 0x0f0f0f0f, x, 0, 4 * j, add);
      sums.add(high_nibbles(w), x, 16, 4 * j, add);
    });
    sums.widen();
  }
};
struct FiveBits {
  static constexpr int64_t kBlockBytes = kQ5BlockBytes;
  static constexpr int kParts = 1;
  template <int R, typename X>
  static GEMLET_INLINE void dot(const uint8_t* lines, const X& x, int, VI (&dots)[R]) {
    RowSums<BitsDot, R> sums{dots};
    const VI fifth = load_i32(lines + kNibbleLines * kLineBytes);
    for_columns<BitsDot, kNibbleLines, four_columns>([&](int j, auto add) GEMLET_INLINE_LAMBDA {
      const VI w = load_i32(lines + j * kLineBytes);
      sums.add((w & 0x0f0f0f0f) | moved(fifth, j, 4, 0x10101010), x, 0, 4 * j, add);
      sums.add(high_nibbles(w) | moved(fifth, 4 + j, 4, 0x10101010), x, 16, 4 * j, add);
      if (j % 2 == 1) sums.widen();
    });
  }
};
struct SixBits {
  static constexpr int64_t kBlockBytes = kQ6BlockBytes;
  static constexpr int kParts = 2;
  template <int R, typename X>
  static GEMLET_INLINE void dot(const uint8_t* lines, const X& x, int part, VI (&dots)[R]) {
    RowSums<BitsDot, R> sums{dots};
    const VI upper = load_i32(lines + (kNibbleLines + part) * kLineBytes);
    for_columns<BitsDot, kNibbleLines, four_columns>([&](int j, auto add) GEMLET_INLINE_LAMBDA {
      const VI four = (load_i32(lines + j * kLineBytes) >> (4 * part)) & 0x0f0f0f0f;
      sums.add(four | moved(upper, 2 * j, 4, 0x30303030), x, 16 * part, 4 * j, add);
      if (j % 2 == 1) sums.widen();
    });
  }
};

enum class Scaling {
  kHalf,             // a block has a scale in f16 (q5)
  kSmall,            // the parts of a block have small scales, which are signed bytes (q6k)
  kSmallAndMinimum,  // a block has a small scale and a small minimum, which are unsigned bytes (q4k, q5k)
};

template <typename Bits, Scaling scaling>
struct BitsProduct {
  static constexpr int kRows = kBitsRows;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  static constexpr bool kGroups = scaling != Scaling::kHalf;
  static constexpr bool kMinimum = scaling == Scaling::kSmallAndMinimum;

  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const int64_t blocks = a.cols / kBlock;
    const uint8_t* const first = (const uint8_t*)a.x + row * a.x_stride;
    RowPointers<R> x(first, a.x_stride), scale(first + a.cols, a.x_stride);
    RowPointers<R> offset(first + a.cols + blocks * 4, a.x_stride);
    LineFetch fetch(a, row, kRows, panel);
    VF d[H] = {}, m[H] = {};
    const uint8_t* scales = panel;
    for (int64_t b = 0; b < blocks; ++b) {
      if (kGroups && b % (2 * kGroupSuperblocks) == 0) {
        for (int h = 0; h < H; ++h) {
          d[h] = load_f16(panel + (h0 + h) * kLanes * 2);
          m[h] = load_f16(panel + (kPanelRows + (h0 + h) * kLanes) * 2);
        }
        panel += kLineBytes;
      }
      if (b % 2 == 0) {
        if (h0 == 0) fetch.superblock(panel, kScaleBytes + 2 * Bits::kBlockBytes);
        scales = panel;
        panel += kScaleBytes;
      }
#pragma GCC unroll 2
      for (int part = 0; part < Bits::kParts; ++part) {
#pragma GCC unroll 4
        for (int h = 0; h < H; ++h) {
          VI dots[R];
          for (int r = 0; r < R; ++r) {
            const int32_t start = kMinimum            ? 0
                                  : Bits::kParts == 1 ? number_at<int32_t>(offset(r))
                                                      : kQ6Zero * half_offset(number_at<int32_t>(offset(r)), part);
            dots[r] = splat_i32(start);
          }
          const int output = (h0 + h) * kLanes;
          Bits::template dot<R>(panel + output * 4, x, part, dots);
          VF weight, minimum = {};
          if constexpr (!kGroups) {
            weight = load_f16(scales + (b % 2 * kPanelRows + output) * 2);
          } else if constexpr (!kMinimum) {
            weight = d[h] * to_float(load_signed_bytes(scales + (b % 2 * 2 + part) * kPanelRows + output));
          } else {
            const uint8_t* const small = scales + b % 2 * 2 * kPanelRows + output;
            weight = d[h] * to_float(load_bytes(small));
            minimum = m[h] * to_float(load_bytes(small + kPanelRows));
          }
          for (int r = 0; r < R; ++r) {
            const float x_scale = number_at<float>(scale(r));
            sums[r][h] = multiply_add(sums[r][h], to_float(dots[r]), weight * x_scale);
            if constexpr (kMinimum) {
              const VF x_sum = splat((float)number_at<int32_t>(offset(r)) * x_scale);
              sums[r][h] = multiply_add(sums[r][h], minimum, x_sum);
            }
          }
        }
      }
      panel += Bits::kBlockBytes;
      x.advance(kBlock);
      scale.advance(4);
      offset.advance(4);
    }
  }
};

}  // namespace

namespace GEMLET_TIER {

void matmul_i8_q5(const MatmulArgs& a) { matmul<BitsProduct<FiveBits, Scaling::kHalf>>(a); }
void matmul_i8_q4k(const MatmulArgs& a) { matmul<BitsProduct<FourBits, Scaling::kSmallAndMinimum>>(a); }
void matmul_i8_q5k(const MatmulArgs& a) { matmul<BitsProduct<FiveBits, Scaling::kSmallAndMinimum>>(a); }
void matmul_i8_q6k(const MatmulArgs& a) { matmul<BitsProduct<SixBits, Scaling::kSmall>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
