// AMX in software, for tests on machines without it. It defines the same class and functions as amx.h, and follows the
// operations in Intel's manual (Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED, TDPBF16PS,
// TDPBSUD). A shape that the processor would refuse, or a tile that is used before it is configured, ends the program.
// The files that include this header are plain C++, without flags for an instruction set.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <bit>

#include "base/float_bits.h"
#include "kernels/simd/amx_config.h"

#define GEMLET_TIER amx_emulated

namespace gemlet::kernels {
namespace {

constexpr int kLanes = 16;
constexpr int kRowTile = 8;
constexpr int kManyRows = kRowTile;
constexpr int64_t kAhead = 0;
typedef float VF __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));

class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;

  void configure(const TileConfig& config) {
    check(config.palette == 1 && config.start_row == 0);
    for (const uint8_t byte : config.reserved) check(byte == 0);
    for (int tile = 0; tile < 16; ++tile) {
      const bool used = config.rows[tile] != 0;
      check(used == (config.line[tile] != 0) && (tile < 8 || !used));
      check(config.rows[tile] <= kTileRows && config.line[tile] <= kLineBytes);
    }
    config_ = config;
    memset(data_, 0, sizeof data_);
  }
  template <int kTile>
  void zero() {
    check(config_.rows[kTile] != 0);
    memset(data_[kTile], 0, kTileBytes);
  }
  template <int kTile>
  void load(const void* rows, int64_t stride) {
    zero<kTile>();
    for (int r = 0; r < config_.rows[kTile]; ++r) {
      memcpy(data_[kTile][r], static_cast<const uint8_t*>(rows) + r * stride, config_.line[kTile]);
    }
  }
  template <int kTile>
  void store(void* rows, int64_t stride) {
    check(config_.rows[kTile] != 0);
    for (int r = 0; r < config_.rows[kTile]; ++r) {
      memcpy(static_cast<uint8_t*>(rows) + r * stride, data_[kTile][r], config_.line[kTile]);
    }
  }
  template <int kSums, int kA, int kB>
  void dot_bf16() {
    const int rows = config_.rows[kSums], pairs = config_.line[kA] / 4, outputs = config_.line[kSums] / 4;
    check_product<kSums, kA, kB>();
    for (int m = 0; m < rows; ++m) {
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < pairs; ++k) {
        const float a0 = number(data_[kA][m], 2 * k), a1 = number(data_[kA][m], 2 * k + 1);
        for (int n = 0; n < outputs; ++n) {
          even[n] = flushed(fmaf(a0, number(data_[kB][k], 2 * n), even[n]));
          odd[n] = flushed(fmaf(a1, number(data_[kB][k], 2 * n + 1), odd[n]));
        }
      }
      for (int n = 0; n < outputs; ++n) {
        float sum;
        memcpy(&sum, data_[kSums][m] + 4 * n, 4);
        sum = flushed(flushed(sum) + flushed(even[n] + odd[n]));
        memcpy(data_[kSums][m] + 4 * n, &sum, 4);
      }
    }
  }
  template <int kSums, int kA, int kB>
  void dot_i8() {
    const int rows = config_.rows[kSums], bytes = config_.line[kA], outputs = config_.line[kSums] / 4;
    check_product<kSums, kA, kB>();
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < outputs; ++n) {
        int32_t sum;
        memcpy(&sum, data_[kSums][m] + 4 * n, 4);
        for (int k = 0; k < bytes; ++k) sum += (int8_t)data_[kA][m][k] * data_[kB][k / 4][4 * n + k % 4];
        memcpy(data_[kSums][m] + 4 * n, &sum, 4);
      }
    }
  }

 private:
  template <int kSums, int kA, int kB>
  void check_product() const {
    check(kSums != kA && kSums != kB && kA != kB && config_.rows[kSums] != 0);
    check(config_.line[kSums] % 4 == 0 && config_.line[kA] % 4 == 0 && config_.line[kB] % 4 == 0);
    check(config_.rows[kA] == config_.rows[kSums] && config_.rows[kB] == config_.line[kA] / 4);
    check(config_.line[kB] == config_.line[kSums]);
  }
  static void check(bool legal) {
    if (!legal) __builtin_trap();
  }
  static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x; }
  static float number(const uint8_t* row, int index) {
    uint16_t bits;
    memcpy(&bits, row + 2 * index, 2);
    return flushed(bf16_to_f32(bits));
  }

  TileConfig config_ = [] {
    TileConfig none;
    none.palette = 0;
    return none;
  }();
  alignas(64) uint8_t data_[8][kTileRows][kLineBytes];
};

inline VF max(VF a, VF b) { return a > b ? a : b; }
inline VI load_bytes(const void* p) {
  VI lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<const uint8_t*>(p)[i];
  return lanes;
}
inline VI load_signed_bytes(const void* p) {
  VI lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<const int8_t*>(p)[i];
  return lanes;
}
inline VF load_f16(const void* p) {
  VF v;
  for (int i = 0; i < kLanes; ++i) {
    uint16_t bits;
    memcpy(&bits, static_cast<const uint8_t*>(p) + 2 * i, 2);
    v[i] = f16_to_f32(bits);
  }
  return v;
}
inline VI bf16_pairs(VF low, VF high) {
  const auto bits = [](float x) -> uint32_t { return f32_to_bf16(fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x); };
  VI v;
  for (int i = 0; i < kLanes; ++i) v[i] = std::bit_cast<int32_t>(bits(low[i]) | bits(high[i]) << 16);
  return v;
}

// sixteen_bytes() puts the same 16 bytes into every 128 bits. look_up() returns the bytes of such a table at the
// indices in `index`, which are below 16.
inline VI sixteen_bytes(const uint8_t* p) {
  VI table;
  for (int at = 0; at < 64; at += 16) memcpy(reinterpret_cast<uint8_t*>(&table) + at, p, 16);
  return table;
}
inline VI look_up(VI table, VI index) {
  typedef uint8_t Bytes __attribute__((vector_size(64)));
  const Bytes bytes = (Bytes)table, places = (Bytes)index;
  Bytes found;
  for (int i = 0; i < 64; ++i) found[i] = bytes[i / 16 * 16 + places[i]];
  return (VI)found;
}
// Adds a + b in lanes of 16 bits. Lanes in which a is 0 become 0.
inline VI add_where_not_zero(VI a, VI b) {
  typedef uint16_t Words __attribute__((vector_size(64)));
  return (VI)(((Words)a + (Words)b) & (Words)((Words)a != 0));
}
inline VF look_up(VF table, VI index) {
  VF v;
  for (int i = 0; i < kLanes; ++i) v[i] = table[index[i] & 15];
  return v;
}

}  // namespace
}  // namespace gemlet::kernels
