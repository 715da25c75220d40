// The formats with one scale for a row: r8, r4 and r2 (formats.h).
#pragma once

#include <cstdint>

#include "formats/formats.h"

namespace gemlet {

// Returns the stored integer in column `c` of row `r` of a panel.
inline int32_t row_scaled_weight(Format format, const uint8_t* panel, int64_t r, int64_t c) {
  const uint8_t* const at = panel + kRowScaleBytes + r * kUnitBytes + c % kUnitBytes;
  if (format == Format::kR8) return at[c / 4 * kLineBytes];
  if (format == Format::kR4) return at[(c / kBlock * 4 + c % 16 / 4) * kLineBytes] >> (c % kBlock / 16 * 4) & 15;
  return at[(c / kSuperblock * 4 + c % 16 / 4) * kLineBytes] >> (c % kSuperblock / 16 * 2) & 3;
}

// The scale of row `r` of a panel.
float row_scale(const uint8_t* panel, int64_t r);

// Packs up to 16 rows of integers. `q` has the stored form of the integers, with zero_point added, and row r begins at
// q + r * cols.
void pack_row_scaled(Format format, const uint8_t* q, const float* scales, int64_t row_count, int64_t cols,
                     uint8_t* panel);

// Like pack_panel(): the scale is max|x| / 127 for r8; for r4 and r2, whose range is not symmetric, the weight of the
// largest magnitude becomes the lowest q.
bool round_row_scaled(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel);

}  // namespace gemlet
