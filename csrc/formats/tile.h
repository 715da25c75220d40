// The helpers of all functions that pack: a block of columns of a panel as vectors of four rows, and arithmetic on
// these vectors.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/float_bits.h"
#include "formats/blocks.h"
#include "formats/formats.h"

namespace gemlet {
namespace {

// A tile is one block of columns of a panel, column by column. Four rows make a vector, which plain SSE2 and NEON have.
// No step mixes rows, so every build and every machine computes the same bits.
constexpr int kLanes = 4;
using Floats = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(16)));
using Column = Floats[kPanelRows / kLanes];
using Tile = Column[kBlock];
constexpr int kGroups = kPanelRows / kLanes;

[[maybe_unused]] constexpr float kLargestF16 = 65504.0f;

// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even.
inline Floats round_even(Floats x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

inline Floats splat(float x) { return Floats{x, x, x, x}; }

// Compiles to a maximum and a minimum instruction. NaN becomes `low`. A NaN comes from 0 times the infinite inverse of
// a scale that is too small for f16.
inline Floats bounded(Floats x, Floats low, Floats high) {
  x = x > low ? x : low;
  return x < high ? x : high;
}

inline Floats magnitude(Floats x) { return std::bit_cast<Floats>(std::bit_cast<Ints>(x) & 0x7fffffff); }

inline Floats inverse(Floats scale) { return scale != 0.0f ? 1.0f / scale : Floats{}; }

inline Floats to_f16_and_back(Floats x) {
  Floats result;
  for (int i = 0; i < kLanes; ++i) result[i] = f16_to_f32(f32_to_f16(x[i]));
  return result;
}

// Returns four lanes: i, j, k and l are 0 to 3 for lanes of a, and 4 to 7 for lanes of b.
template <int i, int j, int k, int l>
inline Floats shuffle(Floats a, Floats b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, i, j, k, l);
#else
  return __builtin_shuffle(a, b, Ints{i, j, k, l});
#endif
}

// Transposes four rows, which lie `stride` floats apart, to four columns.
inline void transpose(const float* rows, int64_t stride, Column* x, int group) {
  Floats r[kLanes];
  for (int i = 0; i < kLanes; ++i) std::memcpy(&r[i], rows + i * stride, sizeof(r[i]));
  const Floats low_even = shuffle<0, 4, 1, 5>(r[0], r[1]), high_even = shuffle<2, 6, 3, 7>(r[0], r[1]);
  const Floats low_odd = shuffle<0, 4, 1, 5>(r[2], r[3]), high_odd = shuffle<2, 6, 3, 7>(r[2], r[3]);
  x[0][group] = shuffle<0, 1, 4, 5>(low_even, low_odd);
  x[1][group] = shuffle<2, 3, 6, 7>(low_even, low_odd);
  x[2][group] = shuffle<0, 1, 4, 5>(high_even, high_odd);
  x[3][group] = shuffle<2, 3, 6, 7>(high_even, high_odd);
}

// Loads columns [first, first + 32) of up to 16 rows, with zeros for what does not exist. Returns false if a value is
// not finite.
bool load_tile(const float* rows, int64_t row_count, int64_t cols, int64_t first, Tile x) {
  const int64_t width = std::min(kBlock, cols - first);
  if (row_count == kPanelRows && width == kBlock) {
    for (int group = 0; group < kGroups; ++group) {
      for (int c = 0; c < kBlock; c += kLanes) {
        transpose(rows + group * kLanes * cols + first + c, cols, x + c, group);
      }
    }
  } else {
    std::memset(x, 0, sizeof(Tile));
    for (int64_t r = 0; r < row_count; ++r) {
      for (int64_t c = 0; c < width; ++c) x[c][r / kLanes][r % kLanes] = rows[r * cols + first + c];
    }
  }
  Ints infinite = {};
  for (int c = 0; c < kBlock; ++c) {
    for (int group = 0; group < kGroups; ++group) {
      infinite |= (std::bit_cast<Ints>(x[c][group]) & 0x7f800000) == 0x7f800000;
    }
  }
  return (infinite[0] | infinite[1] | infinite[2] | infinite[3]) == 0;
}

// Writes the words that block_words() made from the integers of four rows.
inline void store_words(Format format, const Ints (&words)[8], int group, uint8_t* lines) {
  Ints stored[kMostBlockLines];
  const int count = block_words(format, words, stored);
  for (int j = 0; j < count; ++j) std::memcpy(lines + j * kLineBytes + group * sizeof(Ints), &stored[j], sizeof(Ints));
}

}  // namespace
}  // namespace gemlet
