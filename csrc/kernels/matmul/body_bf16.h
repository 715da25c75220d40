// The products of bf16 activations.
#pragma once

#include "kernels/matmul/panels.h"
#include "kernels/simd/tile_bf16.h"

namespace gemlet::kernels {
namespace {

struct Bf16Product {
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const uint8_t* x[R];
    for (int r = 0; r < R; ++r) x[r] = (const uint8_t*)a.x + (row + r) * a.x_stride;
    tile_pairs<R, H>(x, panel, h0, a.cols, sums);
  }
};

}  // namespace

namespace GEMLET_TIER {

void round_bf16(const RoundArgs& a) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  for (int64_t c = 0; c < a.cols; c += kLanes) {
    const int64_t left = a.valid - c;
    const VF x = left >= kLanes ? load(a.x + c) : left > 0 ? load_some(a.x + c, left) : splat(0.0f);
    const Halves halves = __builtin_convertvector(bf16_bits(x), Halves);
    __builtin_memcpy(a.out + c / 32 * a.stride + c % 32 * 2, &halves, sizeof halves);
  }
}

void matmul_bf16_bf16(const MatmulArgs& a) { matmul<Bf16Product>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
