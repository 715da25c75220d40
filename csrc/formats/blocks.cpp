#include "formats/blocks.h"

#include "base/float_bits.h"

namespace gemlet {

namespace {

float scale_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return f16_to_f32(bits);
}

}  // namespace

BlockScale block_scale(Format format, const uint8_t* panel, int64_t r, int64_t part) {
  const int64_t block = part / 2 % 2, superblock = part / 4;
  const uint8_t* const scales = panel + superblock_offset(format, superblock);
  if (!in_groups(format)) return {scale_at(scales + (block * kPanelRows + r) * 2), 0.0f};
  const uint8_t* const group =
      panel + superblock_offset(format, superblock / kGroupSuperblocks * kGroupSuperblocks) - kLineBytes;
  const float d = scale_at(group + r * 2);
  if (!has_minimum(format)) {
    return {d * static_cast<float>(static_cast<int8_t>(scales[part % 4 * kPanelRows + r])), 0.0f};
  }
  const float m = scale_at(group + (kPanelRows + r) * 2);
  const uint8_t* const small = scales + 2 * block * kPanelRows + r;
  return {d * static_cast<float>(small[0]), m * static_cast<float>(small[kPanelRows])};
}

}  // namespace gemlet
