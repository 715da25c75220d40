// Products of many rows on a matrix unit (AMX): y = x W^T in tiles of 16 x 16. round_bf16 has rounded x to bf16 and
// laid it out in tiles; the weights are expanded to bf16.
//
// Two groups of 16 rows are multiplied by two panels of 16 outputs: four loads for four tiles of sums. A pair of panels
// is expanded to tiles kWeightColumns columns at a time. These 16 KB stay in L1, together with 16 KB of x, while all
// rows are multiplied by them, so all rows share the cost of the expansion. The sums are kept in y meanwhile. If x is
// larger than L2, it is cut into pieces of columns that fit, and all panels of the call are multiplied by one piece
// after the other.
#pragma once

#include "kernels/matmul/lines_bf12.h"
#include "kernels/matmul/matmul.h"
#include "kernels/simd/tile_products.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

constexpr int64_t kWeightColumns = 256;
constexpr int64_t kWeightBytes = kPanelRows * kWeightColumns * 2;  // bytes of the expanded weights of one panel
constexpr int64_t kActivationBytes = 768 * 1024;                   // bytes of the piece of x that stays in L2

// expand(panel, cols, column, columns, to): writes columns [column, + columns) of a panel of `cols` columns to `to` as
// tiles: 16 lines of 16 outputs x 2 columns, with zeros after the last column. Returns `to`. If the panel already has
// the weights in that order, it returns their place in the panel and writes nothing. `column` is a multiple of
// kWeightColumns.
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

// The weights of two bf12 panels, for products with few rows. Each step is expanded while the previous step is
// multiplied. The steps come in order.
class Bf12Tiles {
 public:
  Bf12Tiles(const uint8_t* panel, int64_t stride, int64_t cols)
      : panel_(panel),
        stride_(stride),
        superblocks_(bf12_superblocks(cols)),
        exceptions_{{panel, cols}, {panel + stride, cols}} {}

  template <int P>
  void get(int64_t step, const uint8_t* (&w)[2]) {
    for (int64_t p = 0; p < P; ++p) {
      if (step == 0) expand(p, 0);
      expand(p, step + 1);
      w[p] = tiles_[step % 2][p];
    }
  }

 private:
  GEMLET_INLINE void expand(int64_t p, int64_t step) {
    constexpr int64_t kSuperblocks = kTileColumns / kBf12Columns;
    uint8_t* to = tiles_[step % 2][p];
    for (int64_t s = step * kSuperblocks; s < (step + 1) * kSuperblocks; ++s, to += kBf12ExpandedBytes) {
      if (s < superblocks_) {
        fetch_ahead(panel_ + p * stride_ + kLineBytes + s * kBf12SuperblockBytes, kBf12SuperblockBytes);
        exceptions_[p].expand(panel_ + p * stride_, s, to);
      } else {
        __builtin_memset(to, 0, kBf12ExpandedBytes);
      }
    }
  }

  const uint8_t* panel_;
  int64_t stride_, superblocks_;
  Bf12Exceptions exceptions_[2];
  alignas(64) uint8_t tiles_[2][2][kTileBytes];
};

// Expands q8, q5 and q4. Their superblocks have two blocks of 32 columns, and each block is a tile.
template <typename Block>
struct QuantizedWeights {
  static const uint8_t* expand(const uint8_t* panel, int64_t, int64_t column, int64_t columns, uint8_t* to) {
    const uint8_t* superblock = panel + column / kSuperblock * (kScaleBytes + 2 * Block::kBytes);
    for (int64_t c = 0; c < columns; c += kSuperblock, superblock += kScaleBytes + 2 * Block::kBytes) {
      for (int64_t half = 0; half < 2; ++half) {
        Block::expand(superblock + kScaleBytes + half * Block::kBytes, load_f16(superblock + half * (kScaleBytes / 2)),
                      to + (c / kBlock + half) * kTileBytes);
      }
    }
    return to;
  }
};

inline void store_line(uint8_t* to, VI line) { __builtin_memcpy(to, &line, sizeof line); }

// Writes four columns of 16 outputs as bf16: the byte of each weight times `scale`, plus `offset`.
inline void store_columns(VI four, VF scale, VF offset, uint8_t* to) {
  VF w[4];
  for (int i = 0; i < 4; ++i) w[i] = to_float((four >> (8 * i)) & 255) * scale + offset;
  store_line(to, bf16_pairs(w[0], w[1]));
  store_line(to + kLineBytes, bf16_pairs(w[2], w[3]));
}
// Expands a block of weights with 4 or 5 bits.
template <int bits>
inline void expand_bits(const uint8_t* lines, VF scale, VF offset, uint8_t* to) {
  for (int k = 0; k < 8; ++k) {
    VI four = (load_i32(lines + k % 4 * kLineBytes) >> (k / 4 * 4)) & 0x0f0f0f0f;
    if (bits == 5) four |= ((load_i32(lines + 4 * kLineBytes) >> k) & 0x01010101) << 4;
    store_columns(four, scale, offset, to + 2 * k * kLineBytes);
  }
}
// Expands 16 columns of a block of weights with 6 bits.
inline void expand_six(const uint8_t* lines, int part, VF scale, uint8_t* to) {
  const VI upper = load_i32(lines + (4 + part) * kLineBytes);
  for (int k = 0; k < 4; ++k) {
    VI four = (load_i32(lines + k * kLineBytes) >> (part * 4)) & 0x0f0f0f0f;
    four |= ((upper >> (2 * k)) & 0x03030303) << 4;
    store_columns(four, scale, scale * (float)-kQ6Zero, to + 2 * k * kLineBytes);
  }
}

struct Q8Block {
  static constexpr int64_t kBytes = kQ8BlockBytes;
  static void expand(const uint8_t* lines, VF scale, uint8_t* to) {
    const VF zero = scale * (float)-kQ8Zero;
    for (int j = 0; j < 8; ++j) {
      const VI four = load_i32(lines + j * kLineBytes);
      VF w[4];
      for (int i = 0; i < 4; ++i) w[i] = to_float((four >> (8 * i)) & 255) * scale + zero;
      store_line(to + (2 * j) * kLineBytes, bf16_pairs(w[0], w[1]));
      store_line(to + (2 * j + 1) * kLineBytes, bf16_pairs(w[2], w[3]));
    }
  }
};
struct Q4Block {
  static constexpr int64_t kBytes = kQ4BlockBytes;
  static void expand(const uint8_t* lines, VF scale, uint8_t* to) {
    const VF values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    for (int j = 0; j < 4; ++j) {
      const VI eight = load_i32(lines + j * kLineBytes);
      for (int high = 0; high < 2; ++high) {
        VF w[4];
        for (int i = 0; i < 4; ++i) w[i] = look_up(values, eight >> (8 * i + 4 * high)) * scale;
        store_line(to + (8 * high + 2 * j) * kLineBytes, bf16_pairs(w[0], w[1]));
        store_line(to + (8 * high + 2 * j + 1) * kLineBytes, bf16_pairs(w[2], w[3]));
      }
    }
  }
};

struct Q5Block {
  static constexpr int64_t kBytes = kQ5BlockBytes;
  static void expand(const uint8_t* lines, VF scale, uint8_t* to) {
    expand_bits<5>(lines, scale, scale * (float)-kQ5Zero, to);
  }
};

// Expands q4k, q5k and q6k, which have groups of 256 columns. kWeightColumns columns are whole groups.
template <int bits, int64_t block_bytes>
struct GroupedWeights {
  static const uint8_t* expand(const uint8_t* panel, int64_t, int64_t column, int64_t columns, uint8_t* to) {
    constexpr int64_t kSuperblockBytes = kScaleBytes + 2 * block_bytes;
    constexpr int64_t kGroupBytes = kLineBytes + kGroupSuperblocks * kSuperblockBytes;
    const uint8_t* at = panel + column / kGroup * kGroupBytes;
    VF d = {}, m = {};
    for (int64_t c = 0; c < columns; c += kSuperblock) {
      if (c % kGroup == 0) {
        d = load_f16(at);
        m = load_f16(at + kPanelRows * 2);
        at += kLineBytes;
      }
      for (int64_t half = 0; half < 2; ++half) {
        const uint8_t* const small = at + half * 2 * kPanelRows;
        const uint8_t* const lines = at + kScaleBytes + half * block_bytes;
        uint8_t* const tile = to + (c / kBlock + half) * kTileBytes;
        if constexpr (bits == 6) {
          for (int part = 0; part < 2; ++part) {
            const VF scale = d * to_float(load_signed_bytes(small + part * kPanelRows));
            expand_six(lines, part, scale, tile + part * (kTileBytes / 2));
          }
        } else {
          expand_bits<bits>(lines, d * to_float(load_bytes(small)), -(m * to_float(load_bytes(small + kPanelRows))),
                            tile);
        }
      }
      at += kSuperblockBytes;
    }
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
        StoredTiles weights = {};
        weights.panels[0] = Weights::expand(panel, a.cols, column, columns, expanded[0]);
        if (outputs > kPanelRows)
          weights.panels[1] = Weights::expand(panel + a.panel_stride, a.cols, column, columns, expanded[1]);
        for (int64_t row = 0; row < a.rows; row += 2 * kTileRows) {
          const int64_t rows = lesser(2 * kTileRows, a.rows - row);
          const uint8_t* const x = (const uint8_t*)a.x + row * a.x_stride + column / kTileColumns * kTileBytes;
          float* const y = a.y + row * a.y_stride + output;
          products.run(TileShape(rows, outputs), x, place, weights, steps, y, a.y_stride, column > 0);
        }
      }
    }
  }
}

inline void matmul_few_bf12(const MatmulArgs& a) {
  const RowPlace place = {kLineBytes, kTileBytes, kTileRows * a.x_stride};
  const int64_t steps = (a.cols + kTileColumns - 1) / kTileColumns;
  TileProducts products;
  for (int64_t output = 0; output < a.outputs; output += 2 * kPanelRows) {
    const TileShape shape(a.rows, lesser(2 * kPanelRows, a.outputs - output));
    const int64_t stride = shape.outputs[1] > 0 ? a.panel_stride : 0;
    Bf12Tiles weights(a.panels + output / kPanelRows * a.panel_stride, stride, a.cols);
    products.run(shape, (const uint8_t*)a.x, place, weights, steps, a.y + output, a.y_stride, false);
  }
}

}  // namespace

namespace GEMLET_TIER {

void matmul_tiles_bf16(const MatmulArgs& a) { matmul<Bf16Weights>(a); }
void matmul_tiles_bf12(const MatmulArgs& a) { a.rows <= 2 * kTileRows ? matmul_few_bf12(a) : matmul<Bf12Weights>(a); }
void matmul_tiles_q8(const MatmulArgs& a) { matmul<QuantizedWeights<Q8Block>>(a); }
void matmul_tiles_q4(const MatmulArgs& a) { matmul<QuantizedWeights<Q4Block>>(a); }
void matmul_tiles_q5(const MatmulArgs& a) { matmul<QuantizedWeights<Q5Block>>(a); }
void matmul_tiles_q4k(const MatmulArgs& a) { matmul<GroupedWeights<4, kQ4BlockBytes>>(a); }
void matmul_tiles_q5k(const MatmulArgs& a) { matmul<GroupedWeights<5, kQ5BlockBytes>>(a); }
void matmul_tiles_q6k(const MatmulArgs& a) { matmul<GroupedWeights<6, kQ6BlockBytes>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
