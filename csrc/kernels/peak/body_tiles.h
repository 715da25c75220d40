#pragma once

#include "kernels/peak/peak.h"

namespace gemlet::kernels::GEMLET_TIER {

int64_t peak_bf16(int64_t count) {
  TileConfig config;
  for (int tile = 0; tile < 6; ++tile) config.shape(tile, kTileRows, kLineBytes);
  Tiles tiles;
  tiles.configure(config);
  alignas(64) uint8_t numbers[kTileBytes] = {};
  tiles.load<4>(numbers, kLineBytes), tiles.load<5>(numbers, kLineBytes);
  tiles.zero<0>(), tiles.zero<1>(), tiles.zero<2>(), tiles.zero<3>();
  constexpr int64_t kProducts = kTileRows * kTileColumns * 16;
  int64_t done = 0;
  for (; done < count; done += 4 * kProducts) {
    tiles.dot_bf16<0, 4, 5>();
    tiles.dot_bf16<1, 4, 5>();
    tiles.dot_bf16<2, 4, 5>();
    tiles.dot_bf16<3, 4, 5>();
  }
  tiles.store<0>(numbers, kLineBytes);
  return done;
}

}  // namespace gemlet::kernels::GEMLET_TIER
