// Finds the scale (and the minimum) of a block, before they are rounded:
//   q6k       For each 16 columns the best of three scales that are fitted by least squares, as for q4.
//   q4k, q5k  Some ranges around [min(x, 0), max(x)] are tried. For each range, q = round((x - low) / step), and step
//             and minimum are fitted to q by least squares. The minimum is at least zero. The range with the least
//             squared error is kept.
// Squared errors are weighted by the importance of the columns, if there is one.
#include "formats/quantize_groups.h"

#include "formats/tile.h"

namespace gemlet {
namespace {

constexpr int kGroupBlocks = 2 * kGroupSuperblocks;

struct Fit {
  Floats scale, minimum;
};

// Finds the scale of columns [first, + 16) of a block in q6k.
Fit fit_scale(const Tile x, int group, int first, const float* importance) {
  constexpr float kSteps[] = {-32.0f, -33.0f, 31.4f};
  Floats high = {}, low = {};
  for (int c = first; c < first + 16; ++c) {
    high = x[c][group] > high ? x[c][group] : high;
    low = x[c][group] < low ? x[c][group] : low;
  }
  const Floats peak = high > -low ? high : low;
  Floats best = peak / -32.0f, best_gain = {};
  for (const float steps : kSteps) {
    const Floats factor = inverse(peak / steps);
    Floats xq = {}, qq = {};
    for (int c = first; c < first + 16; ++c) {
      const Floats q = round_even(bounded(x[c][group] * factor, splat(-32.0f), splat(31.0f)));
      const Floats counted = q * (importance ? importance[c] : 1.0f);
      xq += x[c][group] * counted;
      qq += q * counted;
    }
    const Floats fitted = qq > 0.0f ? xq / qq : Floats{};
    const Floats gain = xq * fitted;
    const auto better = gain > best_gain;
    best_gain = better ? gain : best_gain;
    best = better ? fitted : best;
  }
  return {best, Floats{}};
}

// Finds the scale and the minimum of a block in q4k or q5k. `highest` is the largest q.
Fit fit_range(const Tile x, int group, float highest, const float* importance) {
  Floats low = {}, high = x[0][group];
  for (int c = 0; c < kBlock; ++c) {
    low = x[c][group] < low ? x[c][group] : low;
    high = x[c][group] > high ? x[c][group] : high;
  }
  Fit best = {(high - low) / highest, -low};
  Floats best_error = splat(3.4e38f);
  for (const float steps : {highest, highest - 0.5f, highest + 0.7f}) {
    const Floats factor = inverse((high - low) / steps);
    Floats n = {}, sx = {}, sq = {}, sqq = {}, sxq = {};
    for (int c = 0; c < kBlock; ++c) {
      const Floats q = round_even(bounded((x[c][group] - low) * factor, Floats{}, splat(highest)));
      const float w = importance ? importance[c] : 1.0f;
      n += splat(w);
      sx += x[c][group] * w;
      sq += q * w;
      sqq += q * q * w;
      sxq += x[c][group] * q * w;
    }
    const Floats determinant = n * sqq - sq * sq;
    Floats a = (n * sxq - sx * sq) / determinant, b = (sqq * sx - sq * sxq) / determinant;
    const auto above = b > 0.0f;
    a = above ? sxq / sqq : a;
    b = above ? Floats{} : b;
    const Floats error = a * a * sqq + 2.0f * a * b * sq + b * b * n - 2.0f * a * sxq - 2.0f * b * sx;
    const auto better = (error < best_error) & (a > 0.0f) & (magnitude(a) <= kLargestF16);
    best_error = better ? error : best_error;
    best.scale = better ? a : best.scale;
    best.minimum = better ? -b : best.minimum;
  }
  return best;
}

// The least f16 d >= 0 for which peak / d is at most `most`, within a thousandth.
uint16_t step_for(float peak, float most) {
  uint16_t bits = f32_to_f16(peak / most);
  if (f16_to_f32(bits) * most < peak * 0.999f) ++bits;
  return bits;
}

// Rounds the scales, or the minima, of a group to integers times a step for each row. The steps go to `steps` (f16 of
// 16 rows), the integers to small(part) (a byte for each row), and the numbers that they stand for to `values`
// [parts][kGroups].
template <typename Small>
bool round_scales(Floats (*values)[kGroups], int parts, float most, uint8_t* steps, const Small& small) {
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const auto at = [&](int part) -> float { return values[part][r / kLanes][r % kLanes]; };
    float peak = 0.0f;
    for (int part = 0; part < parts; ++part) peak = std::max(peak, std::fabs(at(part)));
    const uint16_t bits = step_for(peak, most);
    const float step = f16_to_f32(bits);
    if (!std::isfinite(step)) return false;
    std::memcpy(steps + 2 * r, &bits, 2);
    for (int part = 0; part < parts; ++part) {
      const float whole = step > 0.0f ? std::nearbyint(std::clamp(at(part) / step, -most, most)) : 0.0f;
      small(part)[r] = static_cast<uint8_t>(static_cast<int>(whole));
      values[part][r / kLanes][r % kLanes] = whole * step;
    }
  }
  return true;
}

}  // namespace

bool pack_groups(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel,
                 const float* importance) {
  const int64_t padded = padded_cols(format, cols);
  const bool ranges = has_minimum(format);
  const auto zero = static_cast<float>(zero_point(format));
  const float highest = format == Format::kQ6k ? 31.0f : format == Format::kQ5k ? 31.0f : 15.0f;
  const int block_parts = ranges ? 1 : 2;
  const int part_columns = static_cast<int>(kBlock) / block_parts;
  alignas(64) Tile x;
  Floats scales[2 * kGroupBlocks][kGroups], minima[2 * kGroupBlocks][kGroups];
  for (int64_t first = 0; first < padded; first += kGroup) {
    const auto blocks = static_cast<int>(std::min(kGroup, padded - first) / kBlock);
    for (int b = 0; b < blocks; ++b) {
      const int64_t c = first + b * kBlock;
      if (!load_tile(rows, row_count, cols, c, x)) return false;
      const float* const weights = importance ? importance + c : nullptr;
      for (int part = 0; part < block_parts; ++part) {
        for (int group = 0; group < kGroups; ++group) {
          const Fit fit = ranges ? fit_range(x, group, highest, weights) : fit_scale(x, group, 16 * part, weights);
          scales[b * block_parts + part][group] = fit.scale;
          minima[b * block_parts + part][group] = fit.minimum;
        }
      }
    }
    uint8_t* const head = panel + superblock_offset(format, first / kSuperblock) - kLineBytes;
    std::memset(head, 0, kLineBytes);
    const auto small = [&](int part, int64_t offset) {
      const int in_superblock = 2 * block_parts;
      return panel + superblock_offset(format, first / kSuperblock + part / in_superblock) +
             (part % in_superblock * (ranges ? 2 : 1) + offset) * kPanelRows;
    };
    const int parts = blocks * block_parts;
    if (!round_scales(scales, parts, ranges ? 255.0f : 127.0f, head, [&](int part) { return small(part, 0); }) ||
        (ranges && !round_scales(minima, parts, 255.0f, head + kPanelRows * 2, [&](int p) { return small(p, 1); }))) {
      return false;
    }
    for (int b = 0; b < blocks; ++b) {
      load_tile(rows, row_count, cols, first + b * kBlock, x);
      uint8_t* const lines =
          panel + superblock_offset(format, first / kSuperblock + b / 2) + kScaleBytes + b % 2 * block_bytes(format);
      for (int group = 0; group < kGroups; ++group) {
        Ints words[8];
        for (int k = 0; k < 8; ++k) {
          words[k] = Ints{};
          for (int c = 4 * k; c < 4 * k + 4; ++c) {
            const int part = b * block_parts + c / part_columns;
            const Floats shifted = ranges ? x[c][group] + minima[part][group] : x[c][group];
            const Floats q = round_even(bounded(shifted * inverse(scales[part][group]), splat(-zero), splat(highest)));
            words[k] |= (__builtin_convertvector(q, Ints) + static_cast<int>(zero)) << (c % 4 * 8);
          }
        }
        store_words(format, words, group, lines);
      }
    }
  }
  return true;
}

}  // namespace gemlet
