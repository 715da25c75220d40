// The inner loop of matmul and attention on a matrix unit: up to two groups of 16 rows times up to two panels of 16
// outputs. So four loads serve four tiles of sums. The header of the tier, which defines the class Tiles, is included
// before this one.
#pragma once

#include "kernels/simd/amx_config.h"

namespace gemlet::kernels {
namespace {

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// Tile 2 g + p has the sums of row group g and panel p. Tiles 4 and 5 are x of the two groups, 6 and 7 the two panels.
struct TileShape {
  int64_t rows[2] = {}, outputs[2] = {};  // 0: there is no second group or panel

  TileShape() = default;
  TileShape(int64_t all_rows, int64_t all_outputs) {  // 1 to 32 each
    rows[0] = lesser(all_rows, kTileRows);
    rows[1] = all_rows - rows[0];
    outputs[0] = lesser(all_outputs, kPanelRows);
    outputs[1] = all_outputs - outputs[0];
  }
  // Whether all tiles of this shape also have their sizes in `other`. A change of the configuration takes as long as
  // several products.
  bool fits(const TileShape& other) const {
    bool all = true;
    for (int i = 0; i < 2; ++i) {
      all &= (rows[i] == 0 || rows[i] == other.rows[i]) && (outputs[i] == 0 || outputs[i] == other.outputs[i]);
    }
    return all;
  }
  TileConfig config() const {
    TileConfig config;
    for (int g = 0; g < 2 && rows[g] > 0; ++g) {
      config.shape(4 + g, rows[g], kLineBytes);
      for (int p = 0; p < 2 && outputs[p] > 0; ++p) {
        config.shape(2 * g + p, rows[g], outputs[p] * 4);
        config.shape(6 + p, kTileRows, outputs[p] * 4);
      }
    }
    return config;
  }
};

// The layout of x in memory. The numbers are the bytes from one row to the next in a group of 16, from one step to the
// next, and from the first group to the second.
struct RowPlace {
  int64_t row, step, group;
};

// A step: 32 columns of bf16 with sums in f32, or 64 columns of bytes, signed by unsigned, with sums in int32.
struct Bf16Product {
  template <int kSums, int kA, int kB>
  static void add(Tiles& tiles) {
    tiles.dot_bf16<kSums, kA, kB>();
  }
};
struct BytesProduct {
  template <int kSums, int kA, int kB>
  static void add(Tiles& tiles) {
    tiles.dot_i8<kSums, kA, kB>();
  }
};

// Panels whose tiles lie one after the other. A tile (16 lines of 16 outputs x 4 bytes of columns) is the weights of
// one step.
struct StoredTiles {
  const uint8_t* panels[2];

  // Returns the tiles of a step, one for each of P panels. The steps come in order.
  template <int P>
  void get(int64_t step, const uint8_t* (&w)[2]) {
    for (int p = 0; p < P; ++p) w[p] = panels[p] + step * kTileBytes;
  }
};

// Multiplies G groups of rows by P panels. TileProducts::run() describes the arguments.
template <typename Product, int G, int P, typename Weights>
inline void product_of(Tiles& tiles, const uint8_t* x, const RowPlace& place, Weights& weights, int64_t steps, float* y,
                       int64_t y_stride, bool add) {
  const int64_t stride = y_stride * 4;
  float* const lower = y + kTileRows * y_stride;
  if (add) {
    tiles.load<0>(y, stride);
    if constexpr (P == 2) tiles.load<1>(y + kPanelRows, stride);
    if constexpr (G == 2) tiles.load<2>(lower, stride);
    if constexpr (G == 2 && P == 2) tiles.load<3>(lower + kPanelRows, stride);
  } else {
    tiles.zero<0>();
    if constexpr (P == 2) tiles.zero<1>();
    if constexpr (G == 2) tiles.zero<2>();
    if constexpr (G == 2 && P == 2) tiles.zero<3>();
  }
  for (int64_t step = 0; step < steps; ++step, x += place.step) {
    const uint8_t* w[2];
    weights.template get<P>(step, w);
    tiles.load<6>(w[0], kLineBytes);
    tiles.load<4>(x, place.row);
    Product::template add<0, 4, 6>(tiles);
    if constexpr (G == 2) {
      tiles.load<5>(x + place.group, place.row);
      Product::template add<2, 5, 6>(tiles);
    }
    if constexpr (P == 2) {
      tiles.load<7>(w[1], kLineBytes);
      Product::template add<1, 4, 7>(tiles);
    }
    if constexpr (G == 2 && P == 2) Product::template add<3, 5, 7>(tiles);
  }
  tiles.store<0>(y, stride);
  if constexpr (P == 2) tiles.store<1>(y + kPanelRows, stride);
  if constexpr (G == 2) tiles.store<2>(lower, stride);
  if constexpr (G == 2 && P == 2) tiles.store<3>(lower + kPanelRows, stride);
}

class TileProducts {
 public:
  // y = x w, or y += x w if `add`. `weights` is a StoredTiles or a class with the same function. Products of bytes
  // leave int32 sums in y in place of floats.
  template <typename Product = Bf16Product, typename Weights>
  void run(const TileShape& shape, const uint8_t* x, const RowPlace& place, Weights& weights, int64_t steps, float* y,
           int64_t y_stride, bool add) {
    if (!shape.fits(shape_)) {
      tiles_.configure(shape.config());
      shape_ = shape;
    }
    const auto product =
        shape.rows[1] > 0
            ? (shape.outputs[1] > 0 ? product_of<Product, 2, 2, Weights> : product_of<Product, 2, 1, Weights>)
            : (shape.outputs[1] > 0 ? product_of<Product, 1, 2, Weights> : product_of<Product, 1, 1, Weights>);
    product(tiles_, x, place, weights, steps, y, y_stride, add);
  }

 private:
  Tiles tiles_;
  TileShape shape_;
};

}  // namespace
}  // namespace gemlet::kernels
