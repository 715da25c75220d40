// The closed set of weight formats, and the one packed layout that they share.
//
// A matrix W [rows, cols] (y = W x) is stored as panels of 16 rows. The unit inside a panel is a line of 64 bytes: 16
// rows x 4 bytes of consecutive columns. So a line holds 1 column of f32, 2 of bf16, 4 of q8 or 8 of q4.
//
//   f32   Line j: bytes 4r to 4r + 3 are W[r][j].
//   bf16  Line j: W[r][2j] and W[r][2j + 1].
//   q8    A superblock is 64 columns: 64 bytes of scales, then 16 lines. The scales are f16, 16 rows of the first block
//         of 32 columns, then 16 rows of the second.
//         Line j: W[r][4j] to W[r][4j + 3] as q + 128, an unsigned byte. q is in [-128, 127] and the weight is
//         q * scale. Our own quantization never makes -128, but GGUF may hold it.
//   q4    A superblock is 64 bytes of scales as above, then 4 lines for each of its two blocks.
//         Line j of a block: W[r][4j] to W[r][4j + 3] in the low halves of the bytes, W[r][16 + 4j] to
//         W[r][16 + 4j + 3] in the high halves, each as q + 8. q is in [-8, 7] and the weight is q * scale.
//         No scale is zero, because kernels add to its exponent: a block of zeros has q = 0 and the least scale.
//   q5    A superblock is 64 bytes of scales as above, then 5 lines for each of its two blocks.
//         Lines 0 to 3 of a block: the low four bits of q + 16, in the order of q4. Line 4: bit k of byte 4r + i is the
//         fifth bit of W[r][4k + i]. q is in [-16, 15] and the weight is q * scale.
//   q4k   A group is up to four superblocks (256 columns) after a line of d and m: f16, d of 16 rows, then m.
//         A superblock is a line of small scales, then the lines of its two blocks as in q4, with q in [0, 15]. The
//         small scales are bytes: s of 16 rows and t of 16 rows, for the first block and then for the second. The
//         weight is d * s * q - m * t.
//   q5k   The same with five lines for a block as in q5, and q in [0, 31].
//   q6k   Groups as in q4k; m is not used. The small scales are signed bytes, for each 16 columns of a superblock: 16
//         rows each. A block has six lines: the low four bits of q + 32 in the order of q4; then two lines of upper
//         bits, for 16 columns each: bits 2k and 2k + 1 of byte 4r + i belong to column 4k + i. q is in [-32, 31] and
//         the weight is d * s * q.
//   w4a16 The bits of q4, for products with activations that are not rounded. A scale may be zero.
//   r8, r4, r2
//         A row has one scale, and a panel begins with a line of those of its 16 rows, f32. Superblocks of 64 columns
//         follow. The weight is q * scale.
//           r8  Lines as in q8, with q in [-128, 127] stored as q + 128.
//           r4  Lines of two blocks as in q4, with q in [-8, 7] stored as q + 8.
//           r2  Four lines. Bits 2k and 2k + 1 of byte 4r + i of line j are W[r][16k + 4j + i] as q + 2, q in [-2, 1].
//   bf12  bf16 without loss, where the exponent is a code of four bits. A panel begins with a line of 16-bit words that
//         holds the base of row r at the places 2r and 2r + 1. Superblocks of 8 columns follow: four lines of bf16 in
//         three lines of 16-bit words, where word 2r + c % 2 of a line is about row r and column c.
//           first word:  bits 15 and 6-0 are sign and mantissa of line 0; the same bits of the swapped bytes: line 1
//           second word: the same for lines 2 and 3
//           third word:  the codes of lines 0, 1 and 2 in bits 10-7, 14-11 and 6-3; of line 3 in bits 10-7 of the
//                        swapped bytes
//         Code 0 means the exponent 0, any other code the exponent base / 128 + code. Behind the superblocks stand the
//         exceptions, the weights with any other exponent, in words of 32 bits: first their number, at most
//         most_bf12_exceptions(), then for each, in rising order, its exponent + 256 * its place among the words that
//         the panel has in bf16.
//
// A scale of q4 to q8 covers a block of 32 columns, in q6k 16. The values that q4, w4a16 and q5 can hold are those of
// GGUF's Q4_0 and Q5_0; q8, q4k, q5k and q6k can hold all values of Q8_0, Q4_K, Q5_K and Q6_K. Rows are padded with
// zeros to a multiple of 16, columns to a multiple of 1 (f32), 2 (bf16), 8 (bf12) or 64 (all others).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "formats/layout.h"

namespace gemlet {

// Every format once: X(identifier, name).
#define GEMLET_FORMATS(X) \
  X(F32, f32)             \
  X(Bf16, bf16)           \
  X(Bf12, bf12)           \
  X(Q8, q8)               \
  X(Q6k, q6k)             \
  X(Q5k, q5k)             \
  X(Q5, q5)               \
  X(Q4k, q4k)             \
  X(Q4, q4)               \
  X(W4a16, w4a16)         \
  X(R8, r8)               \
  X(R4, r4)               \
  X(R2, r2)

enum class Format : uint8_t {
#define GEMLET_DECLARE_FORMAT(id, name) k##id,
  GEMLET_FORMATS(GEMLET_DECLARE_FORMAT)
#undef GEMLET_DECLARE_FORMAT
};

// The list of the formats of the KV cache: X(identifier, name, bits of a number). int8 and int4 have one scale for
// each token and head.
#define GEMLET_KV_FORMATS(X) \
  X(F32, f32, 32)            \
  X(Bf16, bf16, 16)          \
  X(Int8, int8, 8)           \
  X(Int4, int4, 4)

enum class KvFormat : uint8_t {
#define GEMLET_DECLARE_KV_FORMAT(id, name, bits) k##id,
  GEMLET_KV_FORMATS(GEMLET_DECLARE_KV_FORMAT)
#undef GEMLET_DECLARE_KV_FORMAT
};

// Files hold panels too. Raise this number when the meaning of a byte in a panel changes.
inline constexpr int kLayoutVersion = 2;

std::string_view format_name(Format format);
std::optional<Format> format_from_name(std::string_view name);
std::string format_names();  // all names, for messages: "f32, bf16, ..."

std::string_view kv_format_name(KvFormat format);
std::optional<KvFormat> kv_format_from_name(std::string_view name);
std::string kv_format_names();
int64_t bits_of(KvFormat format);  // bits of a number

// The number that is added to q to make it unsigned; 0 for formats without such a q.
int32_t zero_point(Format format);
// The bytes of a block's lines, without scales. 0 for formats that are not in blocks.
int64_t block_bytes(Format format);
bool has_minimum(Format format);  // q4k, q5k
bool in_groups(Format format);    // q4k, q5k, q6k
int row_bits(Format format);      // the bits of a weight in r8, r4 and r2; 0 for other formats
// The offset of superblock `index` in a panel. The line of d and m is before the first superblock of a group.
int64_t superblock_offset(Format format, int64_t index);
// Whether channels may be balanced before a matrix is rounded to `format` (model/balance.h).
bool takes_balance(Format format);
int64_t padded_cols(Format format, int64_t cols);
int64_t panel_bytes(Format format, int64_t cols);  // bytes of one panel
inline int64_t panel_count(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }
inline int64_t packed_bytes(Format format, int64_t rows, int64_t cols) {
  return panel_count(rows) * panel_bytes(format, cols);
}

// A product whose input and output are rounded to 8 bits with scales that training has fixed:
// y = rounded(W rounded(x, input), output), with rounded(v, s) = clamp(round(v / s), -128, 127) * s, ties to even.
// A scale of 0 rounds nothing.
struct StaticRounding {
  float input = 0;
  float output = 0;
  bool any() const { return input != 0 || output != 0; }
};

// A packed matrix, whose memory somebody else owns.
struct Matrix {
  Format format = Format::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const uint8_t* data = nullptr;  // panel_count(rows) panels, 64-byte aligned
  StaticRounding rounding = {};

  bool empty() const { return data == nullptr; }
  int64_t panels() const { return panel_count(rows); }
  const uint8_t* panel(int64_t index) const { return data + index * panel_bytes(format, cols); }
  int64_t bytes() const { return packed_bytes(format, rows, cols); }
  // Returns a matrix of the `count` rows from row `first` on. `first` is a multiple of 16.
  Matrix part(int64_t first, int64_t count) const { return {format, count, cols, panel(first / kPanelRows), rounding}; }
};

}  // namespace gemlet
