// The constants of the packed layout, of tiles and of the KV cache, all in one place. formats.h describes the layout
// and kernels/attention/attention.h the cache.
//
// Instruction-set files include this header, so everything in it has internal linkage: code that was compiled for one
// machine can never be linked into files for another.
#pragma once

#include <stdint.h>

namespace gemlet {

// A matrix is stored as panels of 16 rows, a panel as lines: 16 rows x 4 bytes of consecutive columns.
constexpr int64_t kPanelRows = 16;
constexpr int kUnitBytes = 4;                        // bytes of one row in a line
constexpr int kLineBytes = kPanelRows * kUnitBytes;  // a cache line

// Formats in blocks: a block of columns has one scale. Two blocks, their scales in front, are a superblock.
constexpr int64_t kBlock = 32;
constexpr int64_t kSuperblock = 2 * kBlock;
constexpr int kScaleBytes = 2 * kPanelRows * 2;  // bytes of the scales of a superblock, in f16
constexpr int64_t kQ8BlockBytes = kPanelRows * kBlock;
constexpr int64_t kQ4BlockBytes = kPanelRows * kBlock / 2;
constexpr int64_t kQ8SuperblockBytes = kScaleBytes + 2 * kQ8BlockBytes;
constexpr int64_t kQ4SuperblockBytes = kScaleBytes + 2 * kQ4BlockBytes;
// A block of five bits is a q4 block and a line of fifth bits. A block of six bits is a q4 block and two lines of upper
// bits. q4k, q5k and q6k have one more line before every group of four superblocks.
constexpr int64_t kQ5BlockBytes = kQ4BlockBytes + kLineBytes;
constexpr int64_t kQ6BlockBytes = kQ4BlockBytes + 2 * kLineBytes;
constexpr int64_t kGroupSuperblocks = 4;
constexpr int64_t kGroup = kGroupSuperblocks * kSuperblock;
constexpr uint16_t kLeastScale = 1;  // the least f16 above zero, 2^-24
constexpr int kQ8Zero = 128;         // added to q, so that it is unsigned
constexpr int kQ4Zero = 8;
constexpr int kQ5Zero = 16;
constexpr int kQ6Zero = 32;
// Formats with one scale for a row: a panel is a line of scales, f32, and then superblocks of 64 columns.
constexpr int kR2Zero = 2;
constexpr int64_t kRowScaleBytes = kPanelRows * 4;
constexpr int64_t kR8SuperblockBytes = kPanelRows * kSuperblock;
constexpr int64_t kR4SuperblockBytes = kPanelRows * kSuperblock / 2;
constexpr int64_t kR2SuperblockBytes = kPanelRows * kSuperblock / 4;
static_assert(kRowScaleBytes == kLineBytes && kR2SuperblockBytes == 4 * kLineBytes);
static_assert(kLineBytes == 64 && kScaleBytes == kLineBytes, "the scales of a superblock are a line");
static_assert(kQ8SuperblockBytes == 17 * kLineBytes && kQ4SuperblockBytes == 9 * kLineBytes);
static_assert(kBlock == 32, "the halves of a q4 block are 16 columns apart");
static_assert(kQ8Zero == 128, "adding it flips the highest bit");

// bf12: superblocks of 8 columns, which are four lines in bf16 and three in bf12.
constexpr int kBf12Columns = 8;
constexpr int64_t kBf12SuperblockBytes = 3 * kLineBytes;
constexpr int64_t kBf12ExpandedBytes = 4 * kLineBytes;  // bytes of a superblock that is expanded to bf16
constexpr int kBf12Words = kPanelRows * kBf12Columns;   // weights of a superblock
constexpr uint16_t kBf12Kept = 0x807f;                  // sign and mantissa of bf16, which bf12 stores as they are
constexpr uint16_t kBf12Code = 0x0780;                  // the code of an exponent, where its base can be added
static_assert(kBf12ExpandedBytes == 2 * kBf12Words && kBf12SuperblockBytes * 8 == kBf12Words * 12);
static_assert((kBf12Kept & kBf12Code) == 0 && kSuperblock % kBf12Columns == 0);
static constexpr int64_t bf12_superblocks(int64_t cols) { return (cols + kBf12Columns - 1) / kBf12Columns; }
// These functions describe the list of exceptions of a panel: where it begins, how many bytes it has, and how many
// exceptions fit. `cols` may be padded or not.
static constexpr int64_t bf12_exceptions_at(int64_t cols) {
  return kLineBytes + bf12_superblocks(cols) * kBf12SuperblockBytes;
}
static constexpr int64_t bf12_exception_lines(int64_t cols) {
  return (4 + bf12_superblocks(cols) + kLineBytes - 1) / kLineBytes;
}
static constexpr int64_t bf12_exception_bytes(int64_t cols) { return bf12_exception_lines(cols) * kLineBytes; }
static constexpr int64_t most_bf12_exceptions(int64_t cols) {
  return bf12_exception_lines(cols) * (kLineBytes / 4) - 1;
}

// The tile of a matrix unit: 16 rows of one line each, which is 32 columns of bf16. 16 lines of a bf16 panel are a
// tile, too.
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileColumns = kLineBytes / 2;
constexpr int64_t kTileBytes = kTileRows * kLineBytes;
static_assert(kTileRows == kPanelRows && kTileColumns == kBlock);

// The KV cache.
constexpr int64_t kKvBlockTokens = 64;  // tokens of a block of the KV cache
constexpr int64_t kMaxHeadDim = 1024;   // the largest head that attention takes
constexpr int kKvInt8Zero = 128;        // added to the numbers of the int8 cache, so that they are unsigned
static_assert(kKvBlockTokens % kSuperblock == 0 && kMaxHeadDim % kPanelRows == 0);
// Attention is computed in pieces of this many tokens, from multiples of it on. The results of the pieces are added one
// after the other, each scaled to the largest score so far. So a row's result is the same bits, whether one call reads
// all pieces or each piece is a call of its own.
constexpr int64_t kPieceTokens = 4 * kKvBlockTokens;

constexpr int64_t kMaxStreams = 16;  // the most residual streams of AltUp

}  // namespace gemlet
