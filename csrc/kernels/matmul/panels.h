// The loops of the matmul kernels over panels and rows. If there are few rows, each panel is multiplied by all of them,
// kRowTile at a time, while it is in L1.
// With many rows, kRowTile rows at a time stay in L1 while the panels come from L2, so that neighbouring results are
// written together.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"
//
#include "kernels/simd/tile.h"

namespace gemlet::kernels {
namespace {

// Prefetches weights in the order in which they lie, during the products: one line for each line that is multiplied.
// Fetching many lines at once would delay the loads of the products. If all rows take one pass over a panel, the lines
// kAhead bytes later are fetched. If the rows take a few passes, the first two passes each fetch one half of the next
// panel. If they take many passes, the first pass brings the weights into L2.
constexpr int64_t kFewPasses = 4;
class LineFetch {
 public:
  LineFetch(const MatmulArgs& a, int64_t row, int64_t pass_rows, const uint8_t* panel) {
    const int64_t passes = (a.rows + pass_rows - 1) / pass_rows, pass = row / pass_rows;
    if (passes == 1 || (passes > kFewPasses && pass == 0)) return;
    next_ = panel + a.panel_stride + pass * (a.panel_stride / 2);
    half_ = passes <= kFewPasses && pass < 2;
  }
  // `line` is the i-th line of its block.
  GEMLET_INLINE void operator()(const uint8_t* line, int i) {
    if (kAhead == 0) return;
    if (next_ == nullptr) {
      __builtin_prefetch(line + kAhead, 0, 2);
    } else if (i % 2 == 0 && half_) {
      __builtin_prefetch(next_, 0, 2);
      next_ += kLineBytes;
    }
  }
  // Fetches in the same way for all lines of a superblock, which begins at `first`.
  GEMLET_INLINE void superblock(const uint8_t* first, int64_t bytes) {
    if (next_ == nullptr) {
      fetch_ahead(first, bytes);
    } else if (half_) {
      fetch_ahead(next_ - kAhead, bytes / 2);
      next_ += (bytes / 2 + kLineBytes - 1) / kLineBytes * kLineBytes;
    }
  }

 private:
  const uint8_t* next_ = nullptr;
  bool half_ = false;
};

template <int R, int H>
inline void store_tile(const MatmulArgs& a, int64_t row, int64_t panel, int h0, const VF (&sums)[R][H]) {
  for (int h = 0; h < H; ++h) {
    const int64_t first = panel * kPanelRows + (h0 + h) * kLanes;
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

// A Product computes tiles of up to kRows rows, and Product::vectors(R) of the vectors of a panel at a time.
template <typename Product, int R>
inline void panel_rows(const MatmulArgs& a, int64_t row, int64_t panel) {
  constexpr int H = Product::vectors(R);
  for (int h0 = 0; h0 < kPanelVectors; h0 += H) {
    VF sums[R][H] = {};
    Product::template tile<R, H>(a, row, a.panels + panel * a.panel_stride, h0, sums);
    store_tile<R, H>(a, row, panel, h0, sums);
  }
}

// Computes the last rows: `rows` is 1 to R.
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
  constexpr int R = Product::kRows;
  const int64_t panels = (a.outputs + kPanelRows - 1) / kPanelRows;
  if (a.rows <= kFewPasses * R) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      int64_t row = 0;
      for (; row + R <= a.rows; row += R) panel_rows<Product, R>(a, row, panel);
      if (row < a.rows) last_rows<Product, R>(a, row, panel, a.rows - row);
    }
    return;
  }
  int64_t row = 0;
  for (; row + R <= a.rows; row += R) {
    for (int64_t panel = 0; panel < panels; ++panel) panel_rows<Product, R>(a, row, panel);
  }
  for (int64_t panel = 0; panel < panels && row < a.rows; ++panel) last_rows<Product, R>(a, row, panel, a.rows - row);
}

}  // namespace
}  // namespace gemlet::kernels
