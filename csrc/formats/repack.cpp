#include "formats/repack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/float_bits.h"
#include "formats/blocks.h"
#include "formats/gguf_blocks.h"
#include "formats/row_scaled.h"
#include "formats/source_rows.h"

namespace gemlet {

namespace {

constexpr uint8_t kQ4Zeros = 0x88;         // two weights with q = 0
constexpr float kRoundedScale = 0x1p-25f;  // the largest rounding error of a subnormal f16

// Fills a panel with zero weights, because its padding has to be zero. In most formats a scale of zero makes the
// weights zero.
void clear(Format format, uint8_t* panel, int64_t bytes) {
  if (format != Format::kQ4) {
    std::memset(panel, 0, static_cast<size_t>(bytes));
    return;
  }
  std::memset(panel, kQ4Zeros, static_cast<size_t>(bytes));
  for (int64_t at = 0; at < bytes; at += kQ4SuperblockBytes) {
    for (int64_t scale = 0; scale < kScaleBytes; scale += 2) std::memcpy(panel + at + scale, &kLeastScale, 2);
  }
}

bool finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

// Stores one row of a block. `q` has the integers of the row in their stored form.
void store_row(Format format, const uint8_t* q, int64_t r, uint8_t* lines) {
  uint32_t words[8], stored[kMostBlockLines];
  std::memcpy(words, q, kBlock);
  const int count = block_words(format, words, stored);
  for (int j = 0; j < count; ++j) std::memcpy(lines + j * kLineBytes + r * 4, &stored[j], 4);
}

// Packs a row of q8, q5 or q4 from blocks that have one scale each.
bool repack_row(Format format, SourceType type, const uint8_t* row, int64_t r, int64_t cols, uint8_t* panel) {
  const int64_t source_size = source_block_bytes(type);
  const auto zero = static_cast<uint8_t>(zero_point(format));
  for (int64_t b = 0; b < cols / kBlock; ++b) {
    uint8_t* const superblock = panel + superblock_offset(format, b / 2);
    uint8_t q[kBlock];
    const uint16_t scale = integer_block(type, row + b * source_size, reinterpret_cast<int8_t*>(q));
    if (!finite(scale)) return false;
    if (format == Format::kQ4 && (scale & 0x7fffu) == 0) continue;
    for (uint8_t& one : q) one = static_cast<uint8_t>(one + zero);
    store_row(format, q, r, superblock + kScaleBytes + b % 2 * block_bytes(format));
    std::memcpy(superblock + (b % 2 * kPanelRows + r) * 2, &scale, 2);
  }
  return true;
}

// Packs a row of a format with groups from blocks of 256 values of the same kind.
bool repack_groups(Format format, SourceType type, const uint8_t* row, int64_t r, int64_t cols, uint8_t* panel) {
  const int64_t source_size = source_block_bytes(type);
  for (int64_t group = 0; group < cols / kGroup; ++group) {
    const GroupedBlock source = grouped_block(type, row + group * source_size);
    if (!finite(source.scale) || !finite(source.minimum)) return false;
    const int64_t first = group * kGroupSuperblocks;
    uint8_t* const head = panel + superblock_offset(format, first) - kLineBytes;
    std::memcpy(head + r * 2, &source.scale, 2);
    std::memcpy(head + (kPanelRows + r) * 2, &source.minimum, 2);
    for (int64_t b = 0; b < kGroup / kBlock; ++b) {
      uint8_t* const superblock = panel + superblock_offset(format, first + b / 2);
      uint8_t* const small = superblock + 2 * (b % 2) * kPanelRows + r;
      small[0] = source.small[2 * b];
      small[kPanelRows] = source.small[2 * b + 1];
      store_row(format, source.q + b * kBlock, r, superblock + kScaleBytes + b % 2 * block_bytes(format));
    }
  }
  return true;
}

// Packs a row of q4 or w4a16 from i4x32.
void repack_scaled_row(Format format, const uint8_t* row, const float* scales, int64_t r, int64_t cols,
                       uint8_t* panel) {
  for (int64_t b = 0; b < cols / kBlock; ++b) {
    uint8_t* const superblock = panel + superblock_offset(format, b / 2);
    const uint16_t scale = f32_to_f16(scales[b]);
    if ((scale & 0x7fffu) == 0) continue;
    uint8_t q[kBlock];
    stored_integers(row, SourceType::kI4x32, b * kBlock, kBlock, q);
    store_row(format, q, r, superblock + kScaleBytes + b % 2 * kQ4BlockBytes);
    std::memcpy(superblock + (b % 2 * kPanelRows + r) * 2, &scale, 2);
  }
}

// Whether f16 can hold all scales. Small scales may be rounded. The result is false for a NaN or an infinity.
bool are_halves(const SourceScales& own) {
  return own.scales && std::all_of(own.scales, own.scales + own.rows * own.per_row, [](float scale) {
           return std::isfinite(scale) && std::fabs(f16_to_f32(f32_to_f16(scale)) - scale) <= kRoundedScale;
         });
}

}  // namespace

bool can_repack(Format format, SourceType type, const SourceScales& own) {
  switch (format) {
    case Format::kR8:
      return type == SourceType::kI8 && own.per_row == 1;
    case Format::kR4:
      return type == SourceType::kI4 && own.per_row == 1;
    case Format::kR2:
      return type == SourceType::kI2 && own.per_row == 1;
    case Format::kQ4:
      return type == SourceType::kQ4_0 || (type == SourceType::kI4x32 && are_halves(own));
    case Format::kW4a16:
      return type == SourceType::kI4x32 && are_halves(own);
    case Format::kQ4k:
      return type == SourceType::kQ4_K;
    case Format::kQ5:
      return type == SourceType::kQ5_0;
    case Format::kQ5k:
      return type == SourceType::kQ5_K;
    case Format::kQ6k:
      return type == SourceType::kQ6_K;
    case Format::kQ8:
      return has_integer_blocks(type);
    default:
      return false;
  }
}

std::optional<Format> exact_format(SourceType type) {
  if (type == SourceType::kF32) return Format::kF32;
  if (type == SourceType::kBf16) return Format::kBf16;
  if (type == SourceType::kI8) return Format::kR8;
  if (type == SourceType::kI4) return Format::kR4;
  if (type == SourceType::kI2) return Format::kR2;
  if (type == SourceType::kI4x32) return Format::kW4a16;
  for (const Format format : {Format::kQ4, Format::kQ4k, Format::kQ5, Format::kQ5k, Format::kQ6k, Format::kQ8}) {
    if (can_repack(format, type)) return format;
  }
  return std::nullopt;
}

bool repack_panel(Format format, SourceType type, const uint8_t* rows, int64_t row_count, int64_t cols, uint8_t* panel,
                  const SourceScales& own) {
  const int64_t row_bytes = source_bytes(type, cols);
  if (row_bits(format) > 0) {
    std::vector<uint8_t> q(static_cast<size_t>(row_count * cols));
    stored_integers(rows, type, 0, row_count * cols, q.data());
    pack_row_scaled(format, q.data(), own.scales, row_count, cols, panel);
    return std::all_of(own.scales, own.scales + row_count, [](float scale) { return std::isfinite(scale); });
  }
  clear(format, panel, panel_bytes(format, cols));
  for (int64_t r = 0; r < row_count; ++r) {
    const uint8_t* const row = rows + r * row_bytes;
    if (type == SourceType::kI4x32) {
      repack_scaled_row(format, row, own.scales + r * own.per_row, r, cols, panel);
      continue;
    }
    const bool fits = in_groups(format) ? repack_groups(format, type, row, r, cols, panel)
                                        : repack_row(format, type, row, r, cols, panel);
    if (!fits) return false;
  }
  return true;
}

}  // namespace gemlet
