// Attention over a bf16 cache on a matrix unit (AMX). Queries and weights are rounded to bf16. K and V lie in memory in
// the order of tiles, so both products load them as they are.
#pragma once

#include "kernels/attention/body.h"
//
#include "kernels/simd/tile_products.h"

namespace gemlet::kernels {
namespace {

// Writes one row as bf16 to its line of the tiles at `to`, with zeros up to a whole tile.
inline void round_into_tiles(const float* x, int64_t count, uint8_t* to) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
  for (int64_t c = 0; c < (count + kTileColumns - 1) / kTileColumns * kTileColumns; c += kLanes) {
    const int64_t left = count - c;
    const VF some = left >= kLanes ? load(x + c) : left > 0 ? load_some(x + c, left) : splat(0.0f);
    const Halves halves = __builtin_convertvector(bf16_bits(some), Halves);
    __builtin_memcpy(to + c / kTileColumns * kTileBytes + c % kTileColumns * 2, &halves, sizeof halves);
  }
}

// Panels whose last tile, which is not whole, is in a buffer.
struct TilesWithTail {
  StoredTiles whole;
  int64_t steps;  // tiles before the last one
  const uint8_t* tail[2];

  template <int P>
  void get(int64_t step, const uint8_t* (&w)[2]) {
    if (step < steps) return whole.get<P>(step, w);
    for (int p = 0; p < P; ++p) w[p] = tail[p];
  }
};

struct TileCache {
  static constexpr int64_t kBits = 16;
  static constexpr int64_t kWeightBytes =
      kKvBlockTokens / kTileColumns * kTileBytes;  // bytes of the softmax weights of 16 rows
  const AttentionArgs& a;
  int64_t width, query_bytes;
  uint8_t *q, *p;  // groups of 16 rows in tiles; the columns of p are the tokens that mix() takes
  TileProducts products;

  TileCache(const AttentionArgs& args, float* scratch)
      : a(args),
        width(padded_head_dim(a.head_dim)),
        query_bytes((a.head_dim + kTileColumns - 1) / kTileColumns * kTileBytes),
        q((uint8_t*)scratch),
        p(q + (a.rows + kTileRows - 1) / kTileRows * query_bytes) {
    for (int64_t r = 0; r < a.rows; ++r) round_into_tiles(a.q[r], a.head_dim, line_of(q, query_bytes, r));
  }

  static uint8_t* line_of(uint8_t* groups, int64_t group_bytes, int64_t row) {
    return groups + row / kTileRows * group_bytes + row % kTileRows * kLineBytes;
  }

  // y = (or +=, if `add`) x . matrix. The `panels` panels of the matrix lie `panel_bytes` apart. `columns` need not be
  // whole tiles.
  void multiply(const uint8_t* x, int64_t group_bytes, int64_t rows, const uint8_t* matrix, int64_t panel_bytes,
                int64_t panels, int64_t columns, float* y, int64_t y_stride, bool add) {
    const int64_t steps = columns / kTileColumns, whole = steps * kTileBytes;
    const int64_t tail_lines = (columns % kTileColumns + 1) / 2;
    const RowPlace place = {kLineBytes, kTileBytes, group_bytes};
    alignas(64) uint8_t tail[2][kTileBytes];
    if (tail_lines > 0) __builtin_memset(tail, 0, sizeof tail);
    for (int64_t panel = 0; panel < panels; panel += 2) {
      const uint8_t* const w = matrix + panel * panel_bytes;
      TilesWithTail pair = {{{w, w + panel_bytes}}, steps, {tail[0], tail[1]}};
      for (int64_t i = 0; tail_lines > 0 && i < 2 && panel + i < panels; ++i) {
        __builtin_memcpy(tail[i], w + i * panel_bytes + whole, (size_t)(tail_lines * kLineBytes));
      }
      const TileShape shape(rows, lesser(2, panels - panel) * kPanelRows);
      products.run(shape, x, place, pair, steps + (tail_lines > 0), y + panel * kPanelRows, y_stride, add);
    }
  }

  // Prefetches the lines of a block that will be read. With few rows, the products would otherwise wait for each line.
  void fetch(const uint8_t* keys, int64_t panel, int64_t panels) const {
    const int64_t panel_bytes = kPanelRows * 2 * a.head_dim, token_bytes = kPanelRows * 2;
    fetch_lines(keys + panel * panel_bytes, panels * panel_bytes);
    const uint8_t* values = keys + kv_key_bytes(a.head_dim, kBits) + panel * kPanelRows * token_bytes;
    for (int64_t d = 0; d < width; d += kPanelRows, values += kKvBlockTokens * token_bytes) {
      fetch_lines(values, panels * kPanelRows * token_bytes);
    }
  }
  static void fetch_lines(const uint8_t* first, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += kLineBytes) __builtin_prefetch(first + at, 0, 2);
  }

  void scores(const uint8_t* keys, int64_t panel, int64_t panels, float* to) {
    const int64_t panel_bytes = kPanelRows * 2 * a.head_dim;
    if (a.rows <= kTileRows) fetch(keys, panel, panels);
    multiply(q, query_bytes, a.rows, keys + panel * panel_bytes, panel_bytes, panels, a.head_dim,
             to + panel * kPanelRows, kKvBlockTokens, false);
  }
  void weights(const uint8_t*, const float* scores, int64_t first, int64_t count) {
    for (int64_t r = 0; r < a.rows; ++r) {
      round_into_tiles(scores + r * kKvBlockTokens + first, count, line_of(p, kWeightBytes, r));
    }
  }
  // `rows` is all rows, or one.
  void mix(const uint8_t* values, int64_t first, int64_t count, int64_t row, int64_t rows, const float*, float* out,
           const uint8_t*) {
    multiply(line_of(p, kWeightBytes, row), kWeightBytes, rows, values + first * kPanelRows * 2,
             kPanelRows * 2 * kKvBlockTokens, width / kPanelRows, count, out + row * width, width, true);
  }
};

}  // namespace

namespace GEMLET_TIER {

void attention_bf16(const AttentionArgs& a) { attention<TileCache>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
