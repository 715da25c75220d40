#include "formats/repack.h"

#include <cstring>

#include "formats/gguf_blocks.h"

namespace gemlet {

namespace {

constexpr uint8_t kQ4Zeros = 0x88;  // twice q = 0

// Fills a panel with zeros, which is what its padding has to be.
void clear(Format format, uint8_t* panel, int64_t bytes) {
  if (format == Format::kQ8) {
    std::memset(panel, 0, static_cast<size_t>(bytes));
    return;
  }
  std::memset(panel, kQ4Zeros, static_cast<size_t>(bytes));
  for (int64_t at = 0; at < bytes; at += kQ4SuperblockBytes) {
    for (int64_t scale = 0; scale < kScaleBytes; scale += 2) std::memcpy(panel + at + scale, &kLeastScale, 2);
  }
}

}  // namespace

bool can_repack(Format format, SourceType type) {
  return (format == Format::kQ4 && type == SourceType::kQ4_0) || (format == Format::kQ8 && has_integer_blocks(type));
}

std::optional<Format> exact_format(SourceType type) {
  if (type == SourceType::kF32) return Format::kF32;
  if (type == SourceType::kBf16) return Format::kBf16;
  if (can_repack(Format::kQ4, type)) return Format::kQ4;
  if (can_repack(Format::kQ8, type)) return Format::kQ8;
  return std::nullopt;
}

bool repack_panel(Format format, SourceType type, const uint8_t* rows, int64_t row_count, int64_t cols,
                  uint8_t* panel) {
  const bool q8 = format == Format::kQ8;
  const int64_t superblock_bytes = q8 ? kQ8SuperblockBytes : kQ4SuperblockBytes;
  const int64_t line_bytes = (superblock_bytes - kScaleBytes) / 2;  // the lines of one block
  const int64_t row_bytes = source_bytes(type, cols), block_bytes = source_block_bytes(type);
  clear(format, panel, panel_bytes(format, cols));
  for (int64_t r = 0; r < row_count; ++r) {
    for (int64_t b = 0; b < cols / kBlock; ++b) {
      const uint8_t* const block = rows + r * row_bytes + b * block_bytes;
      uint8_t* const superblock = panel + b / 2 * superblock_bytes;
      uint8_t* const lines = superblock + kScaleBytes + b % 2 * line_bytes + r * 4;
      uint16_t scale;
      if (q8) {
        uint8_t q[kBlock];
        scale = integer_block(type, block, reinterpret_cast<int8_t*>(q));
        for (int i = 0; i < kBlock; ++i) q[i] ^= 0x80;  // + 128
        for (int line = 0; line < kBlock / 4; ++line) std::memcpy(lines + line * 64, q + line * 4, 4);
      } else {  // q4_0 stores its integers like q4
        std::memcpy(&scale, block, 2);
        if ((scale & 0x7fffu) == 0) continue;
        for (int line = 0; line < kBlock / 8; ++line) std::memcpy(lines + line * 64, block + 2 + line * 4, 4);
      }
      if ((scale & 0x7c00u) == 0x7c00u) return false;
      std::memcpy(superblock + (b % 2 * kPanelRows + r) * 2, &scale, 2);
    }
  }
  return true;
}

}  // namespace gemlet
