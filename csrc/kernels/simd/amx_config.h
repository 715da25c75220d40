// The shapes of the eight tile registers, in the form that LDTILECFG reads (palette 1).
#pragma once

#include <stdint.h>

#include "formats/layout.h"

namespace gemlet::kernels {
namespace {

// The layout's tile is the largest that the processor has: 16 rows of 64 bytes.
static_assert(kTileRows == 16 && kLineBytes == 64);

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t line[16] = {};  // the bytes of a row of tiles 0 to 7
  uint8_t rows[16] = {};

  void shape(int tile, int64_t tile_rows, int64_t line_bytes) {
    rows[tile] = (uint8_t)tile_rows;
    line[tile] = (uint16_t)line_bytes;
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
}  // namespace gemlet::kernels
