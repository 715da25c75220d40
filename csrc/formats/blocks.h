// The layout of a block of 32 columns in lines, for all formats in blocks (formats.h). Integers are unsigned, as they
// are stored.
#pragma once

#include <cstdint>
#include <cstring>

#include "formats/formats.h"

namespace gemlet {

inline constexpr int kMostBlockLines = 8;

// Makes the words that a row has in the lines of a block. On entry, words[k] has columns 4k to 4k + 3, a byte for each.
// Word is an integer of 32 bits or a vector of them, for several rows. Returns how many lines there are.
template <typename Word>
int block_words(Format format, const Word (&words)[8], Word (&lines)[kMostBlockLines]) {
  if (format == Format::kQ8) {
    for (int k = 0; k < 8; ++k) lines[k] = words[k];
    return 8;
  }
  for (int k = 0; k < 4; ++k) lines[k] = (words[k] & 0x0f0f0f0f) | (words[k + 4] & 0x0f0f0f0f) << 4;
  const int bits = format == Format::kQ6k ? 2 : block_bytes(format) == kQ5BlockBytes ? 1 : 0;  // above the fourth
  if (bits == 1) {
    lines[4] = Word{};
    for (int k = 0; k < 8; ++k) lines[4] |= ((words[k] >> 4) & 0x01010101) << k;
  }
  for (int half = 0; bits == 2 && half < 2; ++half) {
    lines[4 + half] = Word{};
    for (int k = 0; k < 4; ++k) lines[4 + half] |= ((words[4 * half + k] >> 4) & 0x03030303) << (2 * k);
  }
  return 4 + bits;
}

// Column `c` of row `r` of a panel.
inline int32_t stored_weight(Format format, const uint8_t* lines, int64_t r, int64_t c) {
  const auto byte = [&](int64_t line) { return static_cast<int32_t>(lines[line * kLineBytes + r * 4 + c % 4]); };
  if (format == Format::kQ8) return byte(c / 4);
  const int32_t low = c < 16 ? byte(c / 4) & 15 : byte(c / 4 - 4) >> 4;
  if (format == Format::kQ6k) return low | (byte(4 + c / 16) >> (c % 16 / 4 * 2) & 3) << 4;
  return block_bytes(format) == kQ5BlockBytes ? low | (byte(4) >> (c / 4) & 1) << 4 : low;
}

// The scale and the minimum of the weights of row `r` in columns [16 * part, + 16) of a panel. A weight is scale *
// (stored - zero) - minimum.
struct BlockScale {
  float scale;
  float minimum;  // 0 if the format has no minimum
};
BlockScale block_scale(Format format, const uint8_t* panel, int64_t r, int64_t part);

}  // namespace gemlet
