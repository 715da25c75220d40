#include "formats/row_scaled.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace gemlet {

float row_scale(const uint8_t* panel, int64_t r) {
  float scale;
  std::memcpy(&scale, panel + r * 4, 4);
  return scale;
}

void pack_row_scaled(Format format, const uint8_t* q, const float* scales, int64_t row_count, int64_t cols,
                     uint8_t* panel) {
  std::memset(panel, 0, static_cast<size_t>(panel_bytes(format, cols)));
  std::memcpy(panel, scales, static_cast<size_t>(row_count) * 4);
  const int bits = row_bits(format);
  for (int64_t r = 0; r < row_count; ++r) {
    const uint8_t* const row = q + r * cols;
    uint8_t* const out = panel + kRowScaleBytes + r * kUnitBytes;
    for (int64_t c = 0; c < cols; ++c) {
      uint8_t* const at = out + c % kUnitBytes;
      if (bits == 8) {
        at[c / 4 * kLineBytes] = row[c];
      } else if (bits == 4) {
        uint8_t& byte = at[(c / kBlock * 4 + c % 16 / 4) * kLineBytes];
        byte = static_cast<uint8_t>(byte | row[c] << (c % kBlock / 16 * 4));
      } else {
        uint8_t& byte = at[(c / kSuperblock * 4 + c % 16 / 4) * kLineBytes];
        byte = static_cast<uint8_t>(byte | row[c] << (c % kSuperblock / 16 * 2));
      }
    }
  }
}

bool round_row_scaled(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel) {
  const int zero = zero_point(format);
  const auto lowest = static_cast<float>(format == Format::kR8 ? -127 : -zero), highest = static_cast<float>(zero - 1);
  std::vector<uint8_t> q(static_cast<size_t>(row_count * cols));
  float scales[kPanelRows] = {};
  for (int64_t r = 0; r < row_count; ++r) {
    const float* const row = rows + r * cols;
    float peak = 0.0f;  // the value of the largest magnitude, with its sign
    for (int64_t c = 0; c < cols; ++c) {
      if (!std::isfinite(row[c])) return false;
      if (std::fabs(row[c]) > std::fabs(peak)) peak = row[c];
    }
    const float scale = format == Format::kR8 ? std::fabs(peak) / 127.0f : peak / lowest;
    scales[r] = scale;
    for (int64_t c = 0; c < cols; ++c) {
      const float whole = scale != 0.0f ? std::nearbyint(std::clamp(row[c] / scale, lowest, highest)) : 0.0f;
      q[static_cast<size_t>(r * cols + c)] = static_cast<uint8_t>(static_cast<int>(whole) + zero);
    }
  }
  pack_row_scaled(format, q.data(), scales, row_count, cols, panel);
  return true;
}

}  // namespace gemlet
