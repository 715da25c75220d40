// Drives the matmul kernels over panels and rows. Panel by panel, and inside a panel kRowTile rows at a time: the panel
// (10 to 60 KB quantized) stays in L1/L2 while the rows pass by. Decode (one row) streams the panels once.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"
//
#include "kernels/simd/tile.h"

namespace gemlet::kernels {
namespace {

template <int R, int H>
inline void store_tile(const MatmulArgs& a, int64_t row, int64_t panel, int h0, const VF (&sums)[R][H]) {
  for (int h = 0; h < H; ++h) {
    const int64_t first = panel * 16 + (h0 + h) * kLanes;
    const int64_t left = a.outputs - first;
    for (int r = 0; r < R; ++r) {
      float* y = a.y + (row + r) * a.y_stride + first;
      if (left >= kLanes) {
        store(y, sums[r][h]);
      } else if (left > 0) {
        store_some(y, sums[r][h], left);
      }
    }
  }
}

template <typename Product, int R>
inline void panel_rows(const MatmulArgs& a, int64_t row, int64_t panel) {
  constexpr int H = vectors_at_once(R);
  for (int h0 = 0; h0 < kPanelVectors; h0 += H) {
    VF sums[R][H] = {};
    Product::template tile<R, H>(a, row, a.panels + panel * a.panel_stride, h0, sums);
    store_tile<R, H>(a, row, panel, h0, sums);
  }
}

// The last rows of a panel: `rows` is between 1 and R.
template <typename Product, int R>
inline void last_rows(const MatmulArgs& a, int64_t row, int64_t panel, int64_t rows) {
  if (rows == R) {
    panel_rows<Product, R>(a, row, panel);
  } else if constexpr (R > 1) {
    last_rows<Product, R - 1>(a, row, panel, rows);
  }
}

template <typename Product>
inline void matmul(const MatmulArgs& a) {
  const int64_t panels = (a.outputs + 15) / 16;
  for (int64_t panel = 0; panel < panels; ++panel) {
    int64_t row = 0;
    for (; row + kRowTile <= a.rows; row += kRowTile) panel_rows<Product, kRowTile>(a, row, panel);
    if (row < a.rows) last_rows<Product, kRowTile>(a, row, panel, a.rows - row);
  }
}

}  // namespace
}  // namespace gemlet::kernels
