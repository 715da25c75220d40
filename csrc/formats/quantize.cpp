#include "formats/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/float_bits.h"
#include "formats/bf12.h"

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

// Where scale_q4 tries to put the value of largest magnitude: at -8 as Q4_0 does, or a little beyond the range. The
// latter makes that value less exact and all others more exact. 7.4 rounds to 7 without clamping.
struct Try {
  float steps;
  bool clamp;
};
constexpr Try kQ4Tries[] = {{-8.0f, true}, {-9.0f, true}, {7.4f, false}};

constexpr float kLargestF16 = 65504.0f;

// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even.
inline Floats round_even(Floats x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

inline Floats splat(float x) { return Floats{x, x, x, x}; }

// Compiles to a maximum and a minimum instruction. NaN becomes `low`: it arises as 0 times the infinite inverse of a
// scale that is too small for f16.
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

// scale = max|x| / 127
Floats scale_q8(const Tile x, int group) {
  Floats peak = {};
  for (int c = 0; c < kBlock; ++c) {
    const Floats size = magnitude(x[c][group]);
    peak = size > peak ? size : peak;
  }
  return to_f16_and_back(peak / 127.0f);
}

// The value of largest magnitude of each row, with its sign. If several are as large: the first.
Floats peak_of(const Tile x, int group) {
  Floats high = {}, low = {};
  for (int c = 0; c < kBlock; ++c) {
    high = x[c][group] > high ? x[c][group] : high;
    low = x[c][group] < low ? x[c][group] : low;
  }
  Floats peak = high > -low ? high : low;
  for (int i = 0; i < kLanes; ++i) {
    for (int c = 0; high[i] == -low[i] && c < kBlock; ++c) {
      if (std::fabs(x[c][group][i]) == high[i]) {
        peak[i] = x[c][group][i];
        break;
      }
    }
  }
  return peak;
}

// The best of the scales that are fitted by least squares to q = round(x / (peak / steps)). `importance`: of the 32
// columns, null without `weighted`.
template <bool weighted>
Floats scale_q4(const Tile x, int group, const float* importance) {
  const Floats peak = peak_of(x, group);
  constexpr int kTries = std::size(kQ4Tries);
  Floats factor[kTries], xq[kTries] = {}, qq[kTries] = {};
  for (int t = 0; t < kTries; ++t) factor[t] = inverse(peak / kQ4Tries[t].steps);
  for (int c = 0; c < kBlock; ++c) {
    for (int t = 0; t < kTries; ++t) {
      const Floats y = x[c][group] * factor[t];
      const Floats q = round_even(kQ4Tries[t].clamp ? bounded(y, splat(-8.0f), splat(7.0f)) : y);
      const Floats counted = weighted ? q * importance[c] : q;
      xq[t] += x[c][group] * counted;
      qq[t] += q * counted;
    }
  }
  Floats best_scale = peak / -8.0f, best_gain = {};
  for (int t = 0; t < kTries; ++t) {
    // With the fitted scale xq / qq the squared error is sum(x x) - xq xq / qq.
    const Floats fitted = qq[t] > 0.0f ? xq[t] / qq[t] : Floats{};
    const Floats gain = xq[t] * fitted;
    const auto better = (gain > best_gain) & (magnitude(fitted) <= kLargestF16);
    best_gain = better ? gain : best_gain;
    best_scale = better ? fitted : best_scale;
  }
  return to_f16_and_back(best_scale);
}

// q + zero for the four columns from `x` on, as the bytes of a line.
inline Ints quantized(const Column* x, int group, Floats factor, float low, float high, int zero) {
  Ints line = {};
  for (int c = 0; c < 4; ++c) {
    const Floats q = round_even(bounded(x[c][group] * factor, splat(low), splat(high)));
    line |= (__builtin_convertvector(q, Ints) + zero) << (8 * c);
  }
  return line;
}

bool pack_block(Format format, const Tile x, const float* importance, int block, uint8_t* superblock) {
  const bool q8 = format == Format::kQ8;
  uint8_t* const lines = superblock + kScaleBytes + block * kPanelRows * kBlock / (q8 ? 1 : 2);
  for (int group = 0; group < kGroups; ++group) {
    const Floats scale = q8           ? scale_q8(x, group)
                         : importance ? scale_q4<true>(x, group, importance)
                                      : scale_q4<false>(x, group, nullptr);
    for (int i = 0; i < kLanes; ++i) {
      if (!std::isfinite(scale[i])) return false;
      const uint16_t bits = q8 || scale[i] != 0.0f ? f32_to_f16(scale[i]) : kLeastScale;
      std::memcpy(superblock + (block * kPanelRows + group * kLanes + i) * 2, &bits, 2);
    }
    const Floats factor = inverse(scale);
    for (int j = 0; j < (q8 ? 8 : 4); ++j) {
      Ints line;
      if (q8) {
        line = quantized(x + 4 * j, group, factor, -127.0f, 127.0f, 128);
      } else {
        line = quantized(x + 4 * j, group, factor, -8.0f, 7.0f, 8) |
               quantized(x + 16 + 4 * j, group, factor, -8.0f, 7.0f, 8) << 4;
      }
      std::memcpy(lines + j * 64 + group * sizeof(line), &line, sizeof(line));
    }
  }
  return true;
}

bool pack_f32(const Tile x, int64_t cols, uint8_t* out) {
  std::memcpy(out, x, static_cast<size_t>(cols) * sizeof(Column));
  return true;
}

inline Ints round_bf16(Floats x) {
  const Ints bits = std::bit_cast<Ints>(x);
  return ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
}

bool pack_bf16(const Tile x, int64_t cols, uint8_t* out) {
  Ints infinite = {};  // a float just below FLT_MAX is rounded to infinity
  for (int64_t c = 0; c < cols; c += 2) {
    for (int group = 0; group < kGroups; ++group, out += sizeof(Ints)) {
      const Ints even = round_bf16(x[c][group]), odd = round_bf16(x[c + 1][group]);
      infinite |= ((even & 0x7f80) == 0x7f80) | ((odd & 0x7f80) == 0x7f80);
      const Ints line = even | odd << 16;
      std::memcpy(out, &line, sizeof(line));
    }
  }
  return (infinite[0] | infinite[1] | infinite[2] | infinite[3]) == 0;
}

// The lanes i, j, k, l of a (0 to 3) and b (4 to 7).
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

}  // namespace

bool pack_panel(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel,
                const float* importance) {
  if (format == Format::kBf12) return pack_bf12(rows, row_count, cols, panel);
  const int64_t padded = padded_cols(format, cols);
  const int64_t column_bytes = panel_bytes(format, cols) / padded;  // of f32 and bf16
  const int64_t superblock_bytes = format == Format::kQ8 ? kQ8SuperblockBytes : kQ4SuperblockBytes;
  alignas(64) Tile x;
  for (int64_t c = 0; c < padded; c += kBlock) {
    bool fits = load_tile(rows, row_count, cols, c, x);
    switch (format) {
      case Format::kF32:
        fits = fits && pack_f32(x, std::min(kBlock, padded - c), panel + c * column_bytes);
        break;
      case Format::kBf16:
        fits = fits && pack_bf16(x, std::min(kBlock, padded - c), panel + c * column_bytes);
        break;
      case Format::kBf12:
        break;
      case Format::kQ8:
      case Format::kQ4:
        fits = fits && pack_block(format, x, importance ? importance + c : nullptr, static_cast<int>(c / kBlock % 2),
                                  panel + c / kSuperblock * superblock_bytes);
        break;
    }
    if (!fits) return false;
  }
  return true;
}

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
  const uint8_t* panel = matrix.panel(row / kPanelRows);
  const int64_t r = row % kPanelRows;
  switch (matrix.format) {
    case Format::kF32:
      for (int64_t c = 0; c < matrix.cols; ++c) out[c] = reinterpret_cast<const float*>(panel)[c * kPanelRows + r];
      return;
    case Format::kBf16:
      for (int64_t c = 0; c < matrix.cols; ++c) {
        out[c] = bf16_to_f32(reinterpret_cast<const uint16_t*>(panel)[(c / 2 * kPanelRows + r) * 2 + c % 2]);
      }
      return;
    case Format::kBf12:
      for (int64_t c = 0; c < matrix.cols; c += kBf12Columns) {
        uint16_t words[kBf12Words];
        expand_bf12(panel, matrix.cols, c / kBf12Columns, words);
        for (int64_t i = 0; i < std::min<int64_t>(kBf12Columns, matrix.cols - c); ++i) {
          out[c + i] = bf16_to_f32(words[(i / 2 * kPanelRows + r) * 2 + i % 2]);
        }
      }
      return;
    case Format::kQ8:
    case Format::kQ4:
      break;
  }
  const bool q8 = matrix.format == Format::kQ8;
  for (int64_t c = 0; c < matrix.cols; ++c) {
    const uint8_t* superblock = panel + c / kSuperblock * (q8 ? kQ8SuperblockBytes : kQ4SuperblockBytes);
    const int64_t block = c / kBlock % 2, i = c % kBlock;
    uint16_t bits;
    std::memcpy(&bits, superblock + (block * kPanelRows + r) * 2, 2);
    int q;
    if (q8) {
      q = superblock[kScaleBytes + block * kPanelRows * kBlock + i / 4 * 64 + r * 4 + i % 4] - 128;
    } else {
      const int64_t j = i % 16;
      const uint8_t byte = superblock[kScaleBytes + block * kPanelRows * kBlock / 2 + j / 4 * 64 + r * 4 + j % 4];
      q = (i < 16 ? byte & 15 : byte >> 4) - 8;
    }
    out[c] = static_cast<float>(q) * f16_to_f32(bits);
  }
}

}  // namespace gemlet
