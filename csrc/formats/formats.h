// The closed set of weight formats and the one packed layout they share.
//
// A matrix W [rows, cols] (y = W x) is stored as panels of 16 rows. Inside a panel the unit is a line of 64 bytes: 16
// rows x 4 bytes of consecutive columns, that is 1 column of f32, 2 of bf16, 4 of q8 or 8 of q4:
//
//   f32   line j: byte 4r..4r+3 of row r = W[r][j]
//   bf16  line j: W[r][2j], W[r][2j+1]
//   q8    superblock of 64 columns = 2 x 16 f16 scales (64 bytes: first block's 16 rows, then the second's), then 16
//   lines;
//         line j: W[r][4j .. 4j+3] as q + 128 (unsigned), q in [-128, 127], value = q * scale; no -128 from quantizing,
//         but GGUF may have it
//   q4    superblock of 64 columns = 64 bytes of scales as above, then 2 x 4 lines; line j of a block of 32 columns:
//   low
//         nibbles W[r][4j .. 4j+3], high nibbles W[r][16+4j .. 16+4j+3], each q + 8, q in [-8, 7], value = q * scale;
//         no scale is zero, as kernels add to its exponent: zeros have q = 0 and the least scale
//   bf12  bf16 without loss, its exponents as codes of four bits. A line of 16-bit words at the places r * 2 + c % 2:
//         the base of row r, twice. Then superblocks of 8 columns, four lines of bf16 in three of words at these
//         places:
//           sign and mantissa of bf16's line 0 in bits 15 and 6-0, of line 1 there once the word's bytes are swapped
//           the same of lines 2 and 3
//           the codes of lines 0, 1, 2 and 3 in bits 10-7, 14-11, 6-3, and 10-7 once the bytes are swapped
//         The exponent is 0 for code 0, else base / 128 + code. Behind them the exceptions, weights with any other
//         exponent: their count, at most most_bf12_exceptions(), and for each, ascending, its exponent + 256 * its
//         place among the words of the panel in bf16; 32 bits each.
//
// Scales cover blocks of 32 columns. The value set of q4 is GGUF's Q4_0, that of q8 contains Q8_0. Rows are padded with
// zeros to a multiple of 16; columns to a multiple of 1 (f32), 2 (bf16), 8 (bf12) or
// 64 (q8, q4).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace gemlet {

// The list that declares every format: X(identifier, name).
#define GEMLET_FORMATS(X) \
  X(F32, f32)             \
  X(Bf16, bf16)           \
  X(Bf12, bf12)           \
  X(Q8, q8)               \
  X(Q4, q4)

enum class Format : uint8_t {
#define GEMLET_DECLARE_FORMAT(id, name) k##id,
  GEMLET_FORMATS(GEMLET_DECLARE_FORMAT)
#undef GEMLET_DECLARE_FORMAT
};

// Files hold panels too: raise this when a byte in one comes to mean something else.
inline constexpr int kLayoutVersion = 2;

inline constexpr int64_t kPanelRows = 16;
inline constexpr int64_t kBlock = 32;       // columns under one scale
inline constexpr int64_t kSuperblock = 64;  // columns stored together in q8 and q4
inline constexpr int64_t kScaleBytes = 64;  // 2 x 16 f16 scales of a superblock
inline constexpr uint16_t kLeastScale = 1;  // the least f16 above zero, 2^-24
inline constexpr int64_t kQ8SuperblockBytes = kScaleBytes + kPanelRows * kSuperblock;
inline constexpr int64_t kQ4SuperblockBytes = kScaleBytes + kPanelRows * kSuperblock / 2;

inline constexpr int64_t kBf12Columns = 8;  // of a superblock
inline constexpr int64_t kBf12SuperblockBytes = 192;
inline constexpr int64_t kBf12Words = kPanelRows * kBf12Columns;  // weights of a superblock
// The exceptions of a panel: where they begin, their bytes and how many these hold. `cols` may be padded or not.
constexpr int64_t bf12_exceptions_at(int64_t cols) { return 64 + (cols + 7) / 8 * kBf12SuperblockBytes; }
constexpr int64_t bf12_exception_bytes(int64_t cols) { return (4 + (cols + 7) / 8 + 63) / 64 * 64; }
constexpr int64_t most_bf12_exceptions(int64_t cols) { return bf12_exception_bytes(cols) / 4 - 1; }

std::string_view format_name(Format format);
std::optional<Format> format_from_name(std::string_view name);

int32_t zero_point(Format format);  // what q8 and q4 add to q to store it unsigned; 0 for the others
int64_t padded_cols(Format format, int64_t cols);
int64_t panel_bytes(Format format, int64_t cols);  // bytes of one panel of 16 rows
inline int64_t panel_count(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }
inline int64_t packed_bytes(Format format, int64_t rows, int64_t cols) {
  return panel_count(rows) * panel_bytes(format, cols);
}

// A packed matrix, not owned.
struct Matrix {
  Format format = Format::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const uint8_t* data = nullptr;  // panel_count(rows) panels, 64-byte aligned

  bool empty() const { return data == nullptr; }
  int64_t panels() const { return panel_count(rows); }
  const uint8_t* panel(int64_t index) const { return data + index * panel_bytes(format, cols); }
  int64_t bytes() const { return packed_bytes(format, rows, cols); }
  // Of its rows `count` from row `first` on, a multiple of 16.
  Matrix part(int64_t first, int64_t count) const { return {format, count, cols, panel(first / kPanelRows)}; }
};

}  // namespace gemlet
