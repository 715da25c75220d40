// Integer dot products of a block of 32 columns without VNNI. vpmaddubsw multiplies 4 pairs of bytes and returns two
// sums of 16 bits, which saturate. Weights are unsigned, as they are stored; x points to 4 bytes. `offset` is the
// offset that quantize_i8 computes.
#pragma once

#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

// q4: 8 sums of pairs, each at most 2 * 15 * 127 = 3810, fit 16 bits, so the sums of a block are widened once.
struct Q4Dot {
  static VI start(int32_t) { return VI{}; }
  static VI add(VI sums, VI weight, const uint8_t* x) { return add_i16(sums, pair_sums(weight, splat_bytes(x))); }
  static VI total(VI sums, int32_t offset) { return widen_pairs(sums) + offset; }
};

// q8: sums of pairs with bytes up to 255 would saturate. So the sign moves from the weight to x, and a sum of a pair is
// at most 2 * 128 * 127.
struct Q8Dot {
  static VI start(int32_t) { return VI{}; }
  static VI add(VI sums, VI weight, const uint8_t* x) {
    const VI w = weight ^ (int32_t)0x80808080;
    return sums + widen_pairs(pair_sums(abs_i8(w), with_sign_i8(splat_bytes(x), w)));
  }
  static VI total(VI sums, int32_t) { return sums; }
};

// Weights of up to 6 bits. A sum of two products is at most 2 * 63 * 128: two such sums fit 16 bits, four of 5 bits,
// and eight of 4 bits.
struct BitsDot {
  static VI add(VI sums, VI weight, const uint8_t* x) { return sums + widen_pairs(pair_sums(weight, splat_bytes(x))); }
  static VI add_pairs(VI pairs, VI weight, const uint8_t* x) {
    return add_i16(pairs, pair_sums(weight, splat_bytes(x)));
  }
  static VI widened(VI pairs) { return widen_pairs(pairs); }
};

// Unsigned weights of 8 bits times any bytes. The two halves of a weight are multiplied separately. The sums of pairs
// are at most 2 * 15 * 128.
struct ByteDot {
  static VI add(VI sums, VI weight, const uint8_t* x) {
    const VI high = BitsDot::add(VI{}, (weight >> 4) & 0x0f0f0f0f, x);
    return BitsDot::add(sums, weight & 0x0f0f0f0f, x) + (high << 4);
  }
};

}  // namespace
}  // namespace gemlet::kernels
