// Products of many rows of int8 activations on a matrix unit (AMX). The integer sums of a block are exact, and they are
// scaled and added as the vector kernels of these formats do it: a row has the same bits in both.
//
// The weights of a pair of panels are unpacked to bytes, kGroup columns at a time, for all rows. A tile of sums has 16
// rows, 16 outputs and the columns of one scale. Sums of kSumBlocks blocks go to memory, from where vectors scale them
// and add them to y.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/matmul/row_parts.h"
#include "kernels/matmul/scales_int8.h"
#include "kernels/simd/tile_products.h"

namespace gemlet::kernels {
namespace {

constexpr int64_t kGroupBlocks = kGroup / kBlock;
constexpr int64_t kSumBlocks = 4;
constexpr int64_t kBlockLines = kBlock / kUnitBytes;

template <int bits, Scaling scaling>
struct BlockFormat {
  static constexpr int kBits = bits;
  static constexpr Scaling kScaling = scaling;
  static constexpr bool kGroups = scaling != Scaling::kHalf;
  static constexpr bool kMinimum = scaling == Scaling::kSmallAndMinimum;
  static constexpr int kParts = bits == 6 ? 2 : 1;  // of a block, which have a scale each
  static constexpr int64_t kBlockBytes = bits == 8   ? kQ8BlockBytes
                                         : bits == 4 ? kQ4BlockBytes
                                         : bits == 5 ? kQ5BlockBytes
                                                     : kQ6BlockBytes;
  static constexpr int64_t kGroupBytes =
      (kGroups ? kLineBytes : 0) + kGroupSuperblocks * (kScaleBytes + 2 * kBlockBytes);
};

// A panel's weights of up to kGroup columns: lines of 16 outputs x 4 columns, and what they are multiplied by.
template <typename Format>
struct UnpackedPanel {
  alignas(64) uint8_t lines[kGroupBlocks * kBlockLines][kLineBytes];
  VF scales[kGroupBlocks * Format::kParts], minima[kGroupBlocks];

  void unpack(const uint8_t* from, int64_t blocks) {
    VF d = {}, m = {};
    if constexpr (Format::kGroups) {
      d = load_f16(from);
      m = load_f16(from + kPanelRows * 2);
      from += kLineBytes;
    }
    const uint8_t* numbers = from;
    for (int64_t b = 0; b < blocks; ++b, from += Format::kBlockBytes) {
      if (b % 2 == 0) {
        numbers = from;
        from += kScaleBytes;
      }
      unpack_lines(from, lines[b * kBlockLines]);
      if constexpr (!Format::kGroups) {
        scales[b] = load_f16(numbers + b % 2 * kPanelRows * 2);
      } else if constexpr (!Format::kMinimum) {
        for (int part = 0; part < 2; ++part) {
          scales[2 * b + part] = d * to_float(load_signed_bytes(numbers + (b % 2 * 2 + part) * kPanelRows));
        }
      } else {
        const uint8_t* const small = numbers + b % 2 * 2 * kPanelRows;
        scales[b] = d * to_float(load_bytes(small));
        minima[b] = m * to_float(load_bytes(small + kPanelRows));
      }
    }
  }

 private:
  static void unpack_lines(const uint8_t* from, uint8_t* to) {
    if constexpr (Format::kBits == 8) {
      __builtin_memcpy(to, from, (size_t)kQ8BlockBytes);
      return;
    }
    for (int j = 0; j < kNibbleLines; ++j) {
      const VI w = load_i32(from + j * kLineBytes);
      VI low = w & 0x0f0f0f0f, high = (w >> 4) & 0x0f0f0f0f;
      const uint8_t* const upper = from + kNibbleLines * kLineBytes;
      if constexpr (Format::kBits == 5) {
        low |= moved(load_i32(upper), j, 4, 0x10101010);
        high |= moved(load_i32(upper), 4 + j, 4, 0x10101010);
      }
      if constexpr (Format::kBits == 6) {
        low |= moved(load_i32(upper), 2 * j, 4, 0x30303030);
        high |= moved(load_i32(upper + kLineBytes), 2 * j, 4, 0x30303030);
      }
      __builtin_memcpy(to + j * kLineBytes, &low, sizeof low);
      __builtin_memcpy(to + (kNibbleLines + j) * kLineBytes, &high, sizeof high);
    }
  }
};

// The integer sums of up to 32 rows, two panels and kSumBlocks blocks.
template <typename Format>
struct TileSums {
  static constexpr int kCount = kSumBlocks * Format::kParts;
  alignas(64) int32_t numbers[2][2][kCount][kTileRows][kPanelRows];

  // x: the first byte of the block in the first row. `lines`: of the panels.
  template <int G, int P>
  void multiply(Tiles& tiles, const uint8_t* x, int64_t stride, const uint8_t* const* lines, int64_t count) {
    constexpr int64_t kColumns = kBlock / Format::kParts;
    const uint8_t* const lower = x + kTileRows * stride;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i * kColumns * kPanelRows;
      tiles.zero<0>();
      tiles.load<6>(lines[0] + at, kLineBytes);
      tiles.load<4>(x + i * kColumns, stride);
      tiles.dot_i8<0, 4, 6>();
      if constexpr (P == 2) {
        tiles.zero<1>();
        tiles.load<7>(lines[1] + at, kLineBytes);
        tiles.dot_i8<1, 4, 7>();
      }
      if constexpr (G == 2) {
        tiles.zero<2>();
        tiles.load<5>(lower + i * kColumns, stride);
        tiles.dot_i8<2, 5, 6>();
      }
      if constexpr (G == 2 && P == 2) {
        tiles.zero<3>();
        tiles.dot_i8<3, 5, 7>();
      }
      tiles.store<0>(numbers[0][0][i], kLineBytes);
      if constexpr (P == 2) tiles.store<1>(numbers[0][1][i], kLineBytes);
      if constexpr (G == 2) tiles.store<2>(numbers[1][0][i], kLineBytes);
      if constexpr (G == 2 && P == 2) tiles.store<3>(numbers[1][1][i], kLineBytes);
    }
  }
};

// Adds the scaled sums of R rows to y. x: of the first row. `first`: the first of the blocks.
template <typename Format, typename Scales, int R>
inline void add_scaled(const MatmulArgs& a, const uint8_t* x, int64_t first, int64_t blocks,
                       const int32_t (*numbers)[kTileRows][kPanelRows], int64_t row, const VF* scales, const VF* minima,
                       float* y, int64_t outputs) {
  const uint8_t* const scale = x + a.cols + first * 4;
  const uint8_t* const offset = scale + a.cols / kBlock * 4;
  VF sums[R];
  for (int r = 0; r < R; ++r) {
    const float* const at = y + r * a.y_stride;
    sums[r] = first == 0 ? VF{} : outputs == kPanelRows ? load(at) : load_some(at, outputs);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    for (int part = 0; part < Format::kParts; ++part) {
      const int64_t i = b * Format::kParts + part;
      const Scales weights(scales[i]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const uint8_t* const x_scale = scale + r * a.x_stride + b * 4;
        const int32_t x_offset = number_at<int32_t>(offset + r * a.x_stride + b * 4);
        VI total = load_i32(numbers[i][row + r]);
        if constexpr (Format::kParts == 2) total += splat_i32(kQ6Zero * half_offset(x_offset, part));
        if constexpr (Format::kParts == 1 && !Format::kMinimum) total += splat_i32(x_offset);
        sums[r] = multiply_add(sums[r], to_float(total), weights.times(x_scale));
        if constexpr (Format::kMinimum) {
          sums[r] = multiply_add(sums[r], minima[b], splat((float)x_offset * number_at<float>(x_scale)));
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    float* const at = y + r * a.y_stride;
    outputs == kPanelRows ? store(at, sums[r]) : store_some(at, sums[r], outputs);
  }
}

template <typename Format, typename Scales>
inline void matmul_blocks(const MatmulArgs& a) {
  UnpackedPanel<Format> panels[2];
  TileSums<Format> sums;
  Tiles tiles;
  int64_t configured[2] = {};
  const int64_t blocks = a.cols / kBlock;
  for (int64_t output = 0; output < a.outputs; output += 2 * kPanelRows) {
    const uint8_t* const panel = a.panels + output / kPanelRows * a.panel_stride;
    const int64_t pair = a.outputs - output > kPanelRows ? 2 : 1;
    for (int64_t group = 0; group < blocks; group += kGroupBlocks) {
      for (int64_t p = 0; p < pair; ++p) {
        panels[p].unpack(panel + p * a.panel_stride + group / kGroupBlocks * Format::kGroupBytes,
                         lesser(kGroupBlocks, blocks - group));
      }
      for (int64_t row = 0; row < a.rows; row += 2 * kTileRows) {
        const int64_t rows[2] = {lesser(kTileRows, a.rows - row),
                                 a.rows - row > kTileRows ? lesser(kTileRows, a.rows - row - kTileRows) : 0};
        if (rows[0] != configured[0] || rows[1] != configured[1]) {
          TileConfig config;
          for (int g = 0; g < 2 && rows[g] > 0; ++g) {
            config.shape(2 * g, rows[g], kLineBytes);
            config.shape(2 * g + 1, rows[g], kLineBytes);
            config.shape(4 + g, rows[g], kBlock / Format::kParts);
          }
          for (int p = 0; p < 2; ++p) config.shape(6 + p, kBlockLines / Format::kParts, kLineBytes);
          tiles.configure(config);
          configured[0] = rows[0];
          configured[1] = rows[1];
        }
        const uint8_t* const x = (const uint8_t*)a.x + row * a.x_stride;
        for (int64_t first = group; first < lesser(group + kGroupBlocks, blocks); first += kSumBlocks) {
          const int64_t count = lesser(kSumBlocks, blocks - first);
          const uint8_t* const lines[2] = {panels[0].lines[(first - group) * kBlockLines],
                                           panels[1].lines[(first - group) * kBlockLines]};
          const auto multiply = rows[1] > 0 ? (pair == 2 ? &TileSums<Format>::template multiply<2, 2>
                                                         : &TileSums<Format>::template multiply<2, 1>)
                                            : (pair == 2 ? &TileSums<Format>::template multiply<1, 2>
                                                         : &TileSums<Format>::template multiply<1, 1>);
          (sums.*multiply)(tiles, x + first * kBlock, a.x_stride, lines, count * Format::kParts);
          for (int g = 0; g < 2; ++g) {
            for (int64_t p = 0; p < pair; ++p) {
              const UnpackedPanel<Format>& weights = panels[p];
              const int64_t outputs = lesser(kPanelRows, a.outputs - output - p * kPanelRows);
              const auto add = [&](auto add_rows, int64_t r) {
                add_rows(a, x + (g * kTileRows + r) * a.x_stride, first, count, sums.numbers[g][p], r,
                         weights.scales + (first - group) * Format::kParts, weights.minima + (first - group),
                         a.y + (row + g * kTileRows + r) * a.y_stride + output + p * kPanelRows, outputs);
              };
              int64_t r = 0;
              for (; r + 8 <= rows[g]; r += 8) add(add_scaled<Format, Scales, 8>, r);
              for (; r < rows[g]; ++r) add(add_scaled<Format, Scales, 1>, r);
            }
          }
        }
      }
    }
  }
  for (int64_t r = 0; r < a.rows; ++r) {  // adding exponents does not propagate a NaN
    const float scale = number_at<float>((const uint8_t*)a.x + r * a.x_stride + a.cols);
    for (int64_t o = 0; o < a.outputs && scale != scale; ++o) a.y[r * a.y_stride + o] = scale;
  }
}

// For r8, r4 and r2: sums of all columns, in y until they are whole.
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
      const uint8_t* const w[2] = {lines[0], lines[1]};
      for (int64_t row = 0; row < a.rows; row += 2 * kTileRows) {
        const TileShape shape(lesser(2 * kTileRows, a.rows - row), outputs);
        products.run<BytesProduct>(shape, (const uint8_t*)a.x + row * a.x_stride + column, place, w, steps,
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

void matmul_i8_tiles_q8(const MatmulArgs& a) { matmul_blocks<BlockFormat<8, Scaling::kHalf>, AnyScales>(a); }
void matmul_i8_tiles_q4(const MatmulArgs& a) { matmul_blocks<BlockFormat<4, Scaling::kHalf>, PowerScales>(a); }
void matmul_i8_tiles_q5(const MatmulArgs& a) { matmul_blocks<BlockFormat<5, Scaling::kHalf>, AnyScales>(a); }
void matmul_i8_tiles_q4k(const MatmulArgs& a) {
  matmul_blocks<BlockFormat<4, Scaling::kSmallAndMinimum>, AnyScales>(a);
}
void matmul_i8_tiles_q5k(const MatmulArgs& a) {
  matmul_blocks<BlockFormat<5, Scaling::kSmallAndMinimum>, AnyScales>(a);
}
void matmul_i8_tiles_q6k(const MatmulArgs& a) { matmul_blocks<BlockFormat<6, Scaling::kSmall>, AnyScales>(a); }
void matmul_s8_tiles_r8(const MatmulArgs& a) { matmul_rows<EightBitRows>(a); }
void matmul_s8_tiles_r4(const MatmulArgs& a) { matmul_rows<FourBitRows>(a); }
void matmul_s8_tiles_r2(const MatmulArgs& a) { matmul_rows<TwoBitRows>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
