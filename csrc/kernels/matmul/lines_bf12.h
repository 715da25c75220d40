// Expands bf12 to bf16 in registers (formats/formats.h describes the layout), and multiplies x by the result. A few
// weights have no code. A superblock with such weights is expanded in memory, where their exponents are set.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

typedef uint16_t Words __attribute__((vector_size(sizeof(VI))));

inline Words load_words(const uint8_t* p) { return (Words)load_i32(p); }
inline Words swap_bytes(Words w) {
  const uint8_t places[16] = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
  return (Words)look_up((VI)w, sixteen_bytes(places));
}
// A line of bf16: sign and mantissa from `kept`, the exponent from the code in bits 7 to 10 of `codes`.
inline VI bf12_line(Words kept, Words codes, Words base) {
  return (VI)((kept & kBf12Kept) | (Words)add_where_not_zero((VI)(codes & kBf12Code), (VI)base));
}
// Expands one vector of each of the four lines of the superblock; `at` points to the vector of its first line.
GEMLET_INLINE void bf12_lines(const uint8_t* at, Words base, VI (&lines)[4]) {
  const Words first = load_words(at), second = load_words(at + kLineBytes), codes = load_words(at + 2 * kLineBytes);
  lines[0] = bf12_line(first, codes, base);
  lines[1] = bf12_line(swap_bytes(first), codes >> 4, base);
  lines[2] = bf12_line(second, codes << 4, base);
  lines[3] = bf12_line(swap_bytes(second), swap_bytes(codes), base);
}

// Walks through the exceptions of a panel: the weights that have no code, in the order of their superblocks.
struct Bf12Exceptions {
  const uint8_t* next;
  const uint8_t* end;

  Bf12Exceptions(const uint8_t* panel, int64_t cols) {
    const uint8_t* const list = panel + bf12_exceptions_at(cols);
    const int64_t most = most_bf12_exceptions(cols);
    uint32_t count;
    __builtin_memcpy(&count, list, 4);
    next = list + 4;
    end = next + 4 * (count < most ? count : most);
  }
  uint32_t entry() const {
    uint32_t value;
    __builtin_memcpy(&value, next, 4);
    return value;
  }
  // The superblock of the next exception, but at most `otherwise`. In a damaged file the exceptions may be in any
  // order.
  int64_t superblock(int64_t otherwise) const {
    const int64_t found = next < end ? entry() >> 15 : otherwise;
    return found < otherwise ? found : otherwise;
  }
  // Expands a superblock to `words`, with the exponents of its exceptions.
  void expand(const uint8_t* panel, int64_t superblock, uint8_t* words) {
    for (int at = 0; at < kLineBytes; at += (int)sizeof(VI)) {
      VI lines[4];
      bf12_lines(panel + kLineBytes + superblock * kBf12SuperblockBytes + at, load_words(panel + at), lines);
      for (int j = 0; j < 4; ++j) __builtin_memcpy(words + kLineBytes * j + at, &lines[j], sizeof lines[j]);
    }
    for (; next < end && entry() >> 15 <= superblock; next += 4) {
      if (entry() >> 15 != superblock) continue;
      uint8_t* const at = words + (entry() >> 8) % kBf12Words * 2;
      uint16_t word;
      __builtin_memcpy(&word, at, 2);
      word = (uint16_t)((word & kBf12Kept) | (entry() & 255) << 7);
      __builtin_memcpy(at, &word, 2);
    }
  }
};

// Multiplies R rows of x (X::kBytes for a column) by H vectors of a panel. It adds products in the same order as the
// tile of bf16.
template <typename X, int R, int H>
GEMLET_INLINE void tile_bf12(const uint8_t* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
  constexpr int64_t kStep = kBf12Columns * X::kBytes;
  const int64_t superblocks = bf12_superblocks(cols), whole = cols / kBf12Columns;
  Bf12Exceptions exceptions(panel, cols);
  VF odd[R][H] = {};
  Words base[H];
  for (int h = 0; h < H; ++h) base[h] = load_words(panel + (h0 + h) * kLanes * 4);
  const uint8_t* at = panel + kLineBytes + h0 * kLanes * 4;
  int64_t s = 0;
  for (;;) {
    const int64_t stop = exceptions.superblock(whole);
    for (; s < stop; ++s, at += kBf12SuperblockBytes) {
      if (h0 == 0) fetch_ahead(at, kBf12SuperblockBytes);
      for (int h = 0; h < H; ++h) {
        VI lines[4];
        bf12_lines(at + h * kLanes * 4, base[h], lines);
        for (int j = 0; j < 4; ++j) X::template add<R, H>(x, s * kStep + j * 2 * X::kBytes, j, lines[j], h, sums, odd);
      }
    }
    if (s == superblocks) break;
    alignas(64) uint8_t words[kBf12ExpandedBytes];
    // Missing float columns are -0, which leaves every sum as it is. In bf16 no column is missing.
    alignas(64) uint8_t columns[R][kStep];
    const uint8_t* rows[R];
    const int64_t left = cols - s * kBf12Columns < kBf12Columns ? cols - s * kBf12Columns : kBf12Columns;
    exceptions.expand(panel, s, words);
    for (int r = 0; r < R; ++r) {
      for (int64_t i = 0; i < kStep; ++i) columns[r][i] = i % 4 == 3 ? 0x80 : 0;
      __builtin_memcpy(columns[r], x[r] + s * kStep, (size_t)(left * X::kBytes));
      rows[r] = columns[r];
    }
    for (int j = 0; j < 4; ++j) {
      for (int h = 0; h < H; ++h) {
        const VI line = load_i32(words + j * kLineBytes + (h0 + h) * kLanes * 4);
        X::template add<R, H>(rows, j * 2 * X::kBytes, j, line, h, sums, odd);
      }
    }
    ++s;
    at += kBf12SuperblockBytes;
  }
  for (int h = 0; h < H; ++h) {
    for (int r = 0; r < R; ++r) sums[r][h] += odd[r][h];
  }
}

// Expands the panels to bf16 in a.scratch and returns the arguments of the same product with them.
inline MatmulArgs expanded(const MatmulArgs& a) {
  MatmulArgs args = a;
  const int64_t superblocks = bf12_superblocks(a.cols);
  args.panels = a.scratch;
  args.panel_stride = superblocks * kBf12ExpandedBytes;
  uint8_t* to = a.scratch;
  const uint8_t* panel = a.panels;
  for (int64_t output = 0; output < a.outputs; output += kPanelRows, panel += a.panel_stride) {
    Bf12Exceptions exceptions(panel, a.cols);
    for (int64_t s = 0; s < superblocks; ++s, to += kBf12ExpandedBytes) exceptions.expand(panel, s, to);
  }
  return args;
}

}  // namespace
}  // namespace gemlet::kernels
