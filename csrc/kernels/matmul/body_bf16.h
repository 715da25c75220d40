// Products with bf16 activations.
#pragma once

#include "kernels/matmul/lines_bf12.h"
#include "kernels/matmul/panels.h"
#include "kernels/simd/tile_bf16.h"

namespace gemlet::kernels {
namespace {

// The products of tile_bf12() with x in bf16. Even and odd lines have separate sums.
struct PairColumns {
  static constexpr int64_t kBytes = 2;
  template <int R, int H>
  static GEMLET_INLINE void add(const uint8_t* const* x, int64_t at, int line, VI w, int h, VF (&sums)[R][H],
                                VF (&odd)[R][H]) {
    for (int r = 0; r < R; ++r) {
      VF& sum = line % 2 == 0 ? sums[r][h] : odd[r][h];
      sum = dot_bf16(sum, w, splat_bytes(x[r] + at));
    }
  }
};

struct Bf16Pairs {
  template <int R, int H>
  static GEMLET_INLINE void tile(const uint8_t* const* x, const uint8_t* panel, int h0, int64_t cols,
                                 VF (&sums)[R][H]) {
    tile_pairs<R, H>(x, panel, h0, cols, sums);
  }
};
struct Bf12Pairs {
  template <int R, int H>
  static GEMLET_INLINE void tile(const uint8_t* const* x, const uint8_t* panel, int h0, int64_t cols,
                                 VF (&sums)[R][H]) {
    tile_bf12<PairColumns, R, H>(x, panel, h0, cols, sums);
  }
};

template <typename Lines>
struct PairProduct {
  static constexpr int kRows = kRowTile;
  static constexpr int vectors(int rows) { return vectors_at_once(rows); }
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const uint8_t* x[R];
    for (int r = 0; r < R; ++r) x[r] = (const uint8_t*)a.x + (row + r) * a.x_stride;
    Lines::template tile<R, H>(x, panel, h0, a.cols, sums);
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
    __builtin_memcpy(a.out + c / kTileColumns * a.stride + c % kTileColumns * 2, &halves, sizeof halves);
  }
}

void matmul_bf16_bf16(const MatmulArgs& a) { matmul<PairProduct<Bf16Pairs>>(a); }
void matmul_bf16_bf12(const MatmulArgs& a) {
  a.scratch ? matmul_bf16_bf16(expanded(a)) : matmul<PairProduct<Bf12Pairs>>(a);
}

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
