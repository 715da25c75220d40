// The shapes of the eight tile registers, as LDTILECFG reads them (palette 1).
#pragma once

#include <stdint.h>

namespace gemlet::kernels {
namespace {

constexpr int64_t kTileRows = 16;     // most rows of a tile
constexpr int64_t kTileLine = 64;     // most bytes of a row
constexpr int64_t kTileColumns = 32;  // bf16 numbers in a row
constexpr int64_t kTileBytes = kTileRows * kTileLine;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t line[16] = {};  // bytes of a row, of tiles 0 to 7
  uint8_t rows[16] = {};

  void shape(int tile, int64_t tile_rows, int64_t line_bytes) {
    rows[tile] = (uint8_t)tile_rows;
    line[tile] = (uint16_t)line_bytes;
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
}  // namespace gemlet::kernels
