// What the products of int8 activations on vectors and in tiles have in common: how the scales of a block are
// multiplied, and how five and six bits are put together.
#pragma once

#include "kernels/matmul/row_pointers.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

// The scales of the weights of a block, to be multiplied by the scale of x.
struct AnyScales {
  VF weights;
  explicit AnyScales(VF scales) : weights(scales) {}
  VF times(const uint8_t* x) const { return weights * number_at<float>(x); }
};
// The same if the scale of x is a power of two: exponents are added, which leaves the multipliers free.
struct PowerScales {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(VF))));
  Bits weights;
  explicit PowerScales(VF scales) : weights((Bits)scales - 0x3f800000u) {}
  VF times(const uint8_t* x) const { return (VF)(weights + number_at<uint32_t>(x)); }
};

enum class Scaling { kHalf, kSmall, kSmallAndMinimum };  // f16; groups with signed bytes; groups with bytes

constexpr int kNibbleLines = 4;

// Bits `from` and up of each byte, `mask`, at the place `to`.
GEMLET_INLINE VI moved(VI bits, int from, int to, int32_t mask) {
  return (from < to ? bits << (to - from) : bits >> (from - to)) & mask;
}

}  // namespace
}  // namespace gemlet::kernels
