// Products of many rows on a matrix unit (AMX): y = x W^T in tiles of 16 x 16. round_bf16 has rounded x to bf16 and
// laid it out in tiles; the weights are bf16 or expanded to it.
//
// Two groups of 16 rows are multiplied by two panels of 16 outputs: four loads for four tiles of sums. A pair of panels
// is expanded to tiles kWeightColumns columns at a time. These 16 KB stay in L1, together with 16 KB of x, while all
// rows are multiplied by them, so all rows share the cost of the expansion. The sums are kept in y meanwhile. If x is
// larger than L2, it is cut into pieces of columns that are not, and all panels of the call are multiplied by one piece
// after the other.
#pragma once

#include "kernels/matmul/lines_bf12.h"
#include "kernels/matmul/matmul.h"
#include "kernels/simd/tile_products.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

constexpr int64_t kWeightColumns = 256;
constexpr int64_t kWeightBytes = kPanelRows * kWeightColumns * 2;  // of one panel
constexpr int64_t kActivationBytes = 768 * 1024;                   // of the piece of x that stays in L2

// expand(panel, cols, column, columns, to): writes columns [column, + columns) of a panel of `cols` columns to `to` as
// tiles: 16 lines of 16 outputs x 2 columns, with zeros behind the last column. Returns `to`, or the place in the panel
// where they lie in that order already. `column` is a multiple of kWeightColumns.
struct Bf16Weights {
  static const uint8_t* expand(const uint8_t* panel, int64_t, int64_t column, int64_t columns, uint8_t* to) {
    const uint8_t* lines = panel + column * kPanelRows * 2;
    if (columns % kTileColumns == 0) return lines;
    __builtin_memset(to, 0, (size_t)kWeightBytes);
    __builtin_memcpy(to, lines, (size_t)(columns * kPanelRows * 2));
    return to;
  }
};

struct Bf12Weights {
  static const uint8_t* expand(const uint8_t* panel, int64_t cols, int64_t column, int64_t columns, uint8_t* to) {
    Bf12Exceptions exceptions(panel, cols);
    const int64_t first = column / kBf12Columns, end = first + columns / kBf12Columns;
    while (exceptions.superblock(first) < first) exceptions.next += 4;
    for (int64_t s = first; s < end; ++s) exceptions.expand(panel, s, to + (s - first) * kBf12ExpandedBytes);
    const int64_t bytes = columns * kPanelRows * 2, padded = (columns + kTileColumns - 1) / kTileColumns * kTileBytes;
    __builtin_memset(to + bytes, 0, (size_t)(padded - bytes));
    return to;
  }
};

template <typename Weights>
inline void matmul(const MatmulArgs& a) {
  alignas(64) uint8_t expanded[2][kWeightBytes];
  const RowPlace place = {kLineBytes, kTileBytes, kTileRows * a.x_stride};
  int64_t piece = kActivationBytes / (a.rows * 2) / kWeightColumns * kWeightColumns;
  if (piece < kWeightColumns) piece = kWeightColumns;
  TileProducts products;
  for (int64_t first = 0; first < a.cols; first += piece) {
    const int64_t end = lesser(first + piece, a.cols);
    for (int64_t output = 0; output < a.outputs; output += 2 * kPanelRows) {
      const uint8_t* const panel = a.panels + output / kPanelRows * a.panel_stride;
      const int64_t outputs = lesser(2 * kPanelRows, a.outputs - output);
      for (int64_t column = first; column < end; column += kWeightColumns) {
        const int64_t columns = lesser(kWeightColumns, end - column);
        const int64_t steps = (columns + kTileColumns - 1) / kTileColumns;
        const uint8_t* w[2] = {};
        w[0] = Weights::expand(panel, a.cols, column, columns, expanded[0]);
        if (outputs > kPanelRows) w[1] = Weights::expand(panel + a.panel_stride, a.cols, column, columns, expanded[1]);
        for (int64_t row = 0; row < a.rows; row += 2 * kTileRows) {
          const int64_t rows = lesser(2 * kTileRows, a.rows - row);
          const uint8_t* const x = (const uint8_t*)a.x + row * a.x_stride + column / kTileColumns * kTileBytes;
          float* const y = a.y + row * a.y_stride + output;
          products.run(TileShape(rows, outputs), x, place, w, steps, y, a.y_stride, column > 0);
        }
      }
    }
  }
}

}  // namespace

namespace GEMLET_TIER {

void matmul_tiles_bf16(const MatmulArgs& a) { matmul<Bf16Weights>(a); }
void matmul_tiles_bf12(const MatmulArgs& a) { matmul<Bf12Weights>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
