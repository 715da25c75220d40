// Where the columns lie in the lines of the formats with one scale for a row (r8, r4, r2). The kernels read weights
// with these classes.
#pragma once

#include "formats/layout.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

// A superblock of 64 columns has 16 parts of four columns. weights(lines, part, h) returns vector h of the weights of
// columns [column(part), + 4), a byte for each weight.
struct EightBitRows {
  static constexpr int64_t kBytes = kR8SuperblockBytes;
  static constexpr int32_t kZero = kQ8Zero;
  static constexpr int kPartsOfLine = 1;
  static constexpr int column(int part) { return 4 * part; }
  static GEMLET_INLINE VI weights(const uint8_t* lines, int part, int h) {
    return load_i32(lines + part * kLineBytes + h * kLanes * 4);
  }
};
struct FourBitRows {
  static constexpr int64_t kBytes = kR4SuperblockBytes;
  static constexpr int32_t kZero = kQ4Zero;
  static constexpr int kPartsOfLine = 2;
  // The low halves of each line, then its high halves.
  static constexpr int column(int part) { return part / 8 * (int)kBlock + part % 2 * 16 + part % 8 / 2 * 4; }
  static GEMLET_INLINE VI weights(const uint8_t* lines, int part, int h) {
    return (load_i32(lines + part / 2 * kLineBytes + h * kLanes * 4) >> (part % 2 * 4)) & 0x0f0f0f0f;
  }
};
struct TwoBitRows {
  static constexpr int64_t kBytes = kR2SuperblockBytes;
  static constexpr int32_t kZero = kR2Zero;
  static constexpr int kPartsOfLine = 4;
  static constexpr int column(int part) { return part % 4 * 16 + part / 4 * 4; }
  static GEMLET_INLINE VI weights(const uint8_t* lines, int part, int h) {
    return (load_i32(lines + part / 4 * kLineBytes + h * kLanes * 4) >> (part % 4 * 2)) & 0x03030303;
  }
};
constexpr int kSuperblockParts = 16;

}  // namespace
}  // namespace gemlet::kernels
