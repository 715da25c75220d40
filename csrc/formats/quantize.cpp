#include "formats/quantize.h"

#include <iterator>

#include "formats/bf12.h"
#include "formats/blocks.h"
#include "formats/quantize_groups.h"
#include "formats/row_scaled.h"
#include "formats/tile.h"

namespace gemlet {
namespace {

// fitted_scale tries these places for the value of largest magnitude: -8 as in Q4_0, or a little beyond the range. The
// second way makes that value less exact and all others more exact. 7.4 rounds to 7 without clamping.
struct Try {
  float steps;
  bool clamp;
};
constexpr int kTries = 3;
using Tries = Try[kTries];
constexpr Tries kQ4Tries = {{-8.0f, true}, {-9.0f, true}, {7.4f, false}};
constexpr Tries kQ5Tries = {{-16.0f, true}, {-17.0f, true}, {15.4f, false}};

// scale = max|x| / 127
Floats scale_q8(const Tile x, int group) {
  Floats peak = {};
  for (int c = 0; c < kBlock; ++c) {
    const Floats size = magnitude(x[c][group]);
    peak = size > peak ? size : peak;
  }
  return to_f16_and_back(peak / 127.0f);
}

// Returns the value of largest magnitude of each row, with its sign. Among several values of this magnitude it is the
// first.
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

// Returns the best of several scales, which are fitted by least squares to q = round(x / (peak / steps)). The first try
// puts the peak at the lowest q. `importance` has a weight for each of the 32 columns; null without `weighted`.
template <bool weighted>
Floats fitted_scale(const Tile x, int group, const Tries& tries, const float* importance) {
  const Floats peak = peak_of(x, group);
  const float low = tries[0].steps, high = -low - 1.0f;
  Floats factor[kTries], xq[kTries] = {}, qq[kTries] = {};
  for (int t = 0; t < kTries; ++t) factor[t] = inverse(peak / tries[t].steps);
  for (int c = 0; c < kBlock; ++c) {
    for (int t = 0; t < kTries; ++t) {
      const Floats y = x[c][group] * factor[t];
      const Floats q = round_even(tries[t].clamp ? bounded(y, splat(low), splat(high)) : y);
      const Floats counted = weighted ? q * importance[c] : q;
      xq[t] += x[c][group] * counted;
      qq[t] += q * counted;
    }
  }
  Floats best_scale = peak / low, best_gain = {};
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

// Packs a block of q8, q4 or q5.
bool pack_block(Format format, const Tile x, const float* importance, int block, uint8_t* superblock) {
  const bool q8 = format == Format::kQ8;
  const int zero = zero_point(format);
  const auto lowest = static_cast<float>(q8 ? -127 : -zero), highest = static_cast<float>(zero - 1);
  const Tries& tries = format == Format::kQ5 ? kQ5Tries : kQ4Tries;
  uint8_t* const lines = superblock + kScaleBytes + block * block_bytes(format);
  for (int group = 0; group < kGroups; ++group) {
    const Floats scale = q8           ? scale_q8(x, group)
                         : importance ? fitted_scale<true>(x, group, tries, importance)
                                      : fitted_scale<false>(x, group, tries, nullptr);
    for (int i = 0; i < kLanes; ++i) {
      if (!std::isfinite(scale[i])) return false;
      const bool least = format == Format::kQ4 && scale[i] == 0.0f;
      const uint16_t bits = least ? kLeastScale : f32_to_f16(scale[i]);
      std::memcpy(superblock + (block * kPanelRows + group * kLanes + i) * 2, &bits, 2);
    }
    const Floats factor = inverse(scale);
    Ints words[8];
    for (int k = 0; k < 8; ++k) {
      words[k] = Ints{};
      for (int c = 0; c < 4; ++c) {
        const Floats q = round_even(bounded(x[4 * k + c][group] * factor, splat(lowest), splat(highest)));
        words[k] |= (__builtin_convertvector(q, Ints) + zero) << (8 * c);
      }
    }
    store_words(format, words, group, lines);
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

}  // namespace

bool pack_panel(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel,
                const float* importance) {
  if (format == Format::kBf12) return pack_bf12(rows, row_count, cols, panel);
  if (row_bits(format) > 0) return round_row_scaled(format, rows, row_count, cols, panel);
  if (in_groups(format)) return pack_groups(format, rows, row_count, cols, panel, importance);
  const int64_t padded = padded_cols(format, cols);
  const int64_t column_bytes = panel_bytes(format, cols) / padded;  // bytes of a column, for f32 and bf16
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
      default:
        fits = fits && pack_block(format, x, importance ? importance + c : nullptr, static_cast<int>(c / kBlock % 2),
                                  panel + superblock_offset(format, c / kSuperblock));
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
    case Format::kR8:
    case Format::kR4:
    case Format::kR2:
      for (int64_t c = 0; c < matrix.cols; ++c) {
        const int32_t q = row_scaled_weight(matrix.format, panel, r, c) - zero_point(matrix.format);
        out[c] = static_cast<float>(q) * row_scale(panel, r);
      }
      return;
    default:
      break;
  }
  const int64_t block_size = block_bytes(matrix.format);
  const int32_t zero = zero_point(matrix.format);
  constexpr int64_t kPart = kBlock / 2;  // columns with the same scale in all formats
  for (int64_t first = 0; first < matrix.cols; first += kPart) {
    const int64_t block = first / kBlock;
    const uint8_t* const lines =
        panel + superblock_offset(matrix.format, block / 2) + kScaleBytes + block % 2 * block_size;
    const BlockScale scale = block_scale(matrix.format, panel, r, first / kPart);
    for (int64_t c = first; c < std::min(first + kPart, matrix.cols); ++c) {
      const int32_t q = stored_weight(matrix.format, lines, r, c % kBlock) - zero;
      out[c] = static_cast<float>(q) * scale.scale - scale.minimum;
    }
  }
}

}  // namespace gemlet
