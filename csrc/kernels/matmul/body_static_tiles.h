// Products of many rows of integers with fixed scales (kS8) by weights with one scale for a row, on a matrix unit
// (AMX). Integer sums are exact, so a row has the same bits as in the kernels for few rows.
//
// Two panels are computed at a time for all rows. Their weights are unpacked to bytes, kGroup columns at a time.
// Meanwhile y holds the integer sums.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/matmul/row_parts.h"
#include "kernels/matmul/row_pointers.h"
#include "kernels/simd/tile_products.h"

namespace gemlet::kernels {
namespace {

template <typename Rows>
inline void matmul_rows(const MatmulArgs& a) {
  constexpr int64_t kSteps = kGroup / kSuperblock;
  alignas(64) uint8_t lines[2][kSteps * kTileBytes];
  const RowPlace place = {a.x_stride, kSuperblock, kTileRows * a.x_stride};
  TileProducts products;
  for (int64_t output = 0; output < a.outputs; output += 2 * kPanelRows) {
    const uint8_t* const panel = a.panels + output / kPanelRows * a.panel_stride;
    const int64_t outputs = lesser(2 * kPanelRows, a.outputs - output);
    for (int64_t column = 0; column < a.cols; column += kGroup) {
      const int64_t steps = lesser(kGroup, a.cols - column) / kSuperblock;
      for (int64_t p = 0; p * kPanelRows < outputs; ++p) {
        const uint8_t* from = panel + p * a.panel_stride + kRowScaleBytes + column / kSuperblock * Rows::kBytes;
        for (int64_t s = 0; s < steps; ++s, from += Rows::kBytes) {
          for (int part = 0; part < kSuperblockParts; ++part) {
            const VI w = Rows::weights(from, part, 0);
            __builtin_memcpy(lines[p] + s * kTileBytes + Rows::column(part) / kUnitBytes * kLineBytes, &w, sizeof w);
          }
        }
      }
      StoredTiles weights = {{lines[0], lines[1]}};
      for (int64_t row = 0; row < a.rows; row += 2 * kTileRows) {
        const TileShape shape(lesser(2 * kTileRows, a.rows - row), outputs);
        products.run<BytesProduct>(shape, (const uint8_t*)a.x + row * a.x_stride + column, place, weights, steps,
                                   a.y + row * a.y_stride + output, a.y_stride, column > 0);
      }
    }
    for (int64_t p = 0; p < outputs; p += kPanelRows) {
      const VF scale = load((const float*)(panel + p / kPanelRows * a.panel_stride));
      const int64_t count = lesser(kPanelRows, outputs - p);
      for (int64_t r = 0; r < a.rows; ++r) {
        const uint8_t* const end = (const uint8_t*)a.x + r * a.x_stride + a.cols;
        float* const y = a.y + r * a.y_stride + output + p;
        const VI dots = (VI)(count == kPanelRows ? load(y) : load_some(y, count));
        const VF total = to_float(dots + splat_i32(-Rows::kZero * number_at<int32_t>(end + 4)));
        const VF scaled = total * (scale * number_at<float>(end));
        count == kPanelRows ? store(y, scaled) : store_some(y, scaled, count);
      }
    }
  }
}

}  // namespace

namespace GEMLET_TIER {

void matmul_s8_tiles_r8(const MatmulArgs& a) { matmul_rows<EightBitRows>(a); }
void matmul_s8_tiles_r4(const MatmulArgs& a) { matmul_rows<FourBitRows>(a); }
void matmul_s8_tiles_r2(const MatmulArgs& a) { matmul_rows<TwoBitRows>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
