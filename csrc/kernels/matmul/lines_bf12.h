// bf12 back to bf16 in registers (formats/formats.h has the layout), and products with it. The weights that have no
// code are few: a superblock with such weights is expanded in memory, where they are put right.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

typedef uint16_t Words __attribute__((vector_size(sizeof(VI))));

constexpr int kBf12Columns = 8;  // of a superblock: four lines of bf16 in three of 64 bytes
constexpr int64_t kBf12SuperblockBytes = 192;
constexpr int64_t kBf12WordBytes = 256;  // a superblock as bf16

inline Words load_words(const uint8_t* p) { return (Words)load_i32(p); }
inline Words swap_bytes(Words w) { return w << 8 | w >> 8; }
// A line: sign and mantissa from `kept`, the exponent by the code in bits 7 to 10 of `codes`.
inline VI bf12_line(Words kept, Words codes, Words base) {
  const Words code = codes & 0x780;
  return (VI)((kept & 0x807f) | ((code + base) & (Words)(code != 0)));
}
// The part of a superblock's four lines that lies at `at`, a vector each.
GEMLET_INLINE void bf12_lines(const uint8_t* at, Words base, VI (&lines)[4]) {
  const Words first = load_words(at), second = load_words(at + 64), codes = load_words(at + 128);
  lines[0] = bf12_line(first, codes, base);
  lines[1] = bf12_line(swap_bytes(first), codes >> 4, base);
  lines[2] = bf12_line(second, codes << 4, base);
  lines[3] = bf12_line(swap_bytes(second), swap_bytes(codes), base);
}

// The weights of a panel that have no code, in the order of their superblocks.
struct Bf12Exceptions {
  const uint8_t* next;
  const uint8_t* end;

  Bf12Exceptions(const uint8_t* panel, int64_t superblocks) {
    const uint8_t* const list = panel + 64 + superblocks * kBf12SuperblockBytes;
    const int64_t most = (4 + superblocks + 63) / 64 * 16 - 1;
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
  // The superblock of the next one, or `otherwise`. A damaged file may have them in any order.
  int64_t superblock(int64_t otherwise) const {
    const int64_t found = next < end ? entry() >> 15 : otherwise;
    return found < otherwise ? found : otherwise;
  }
  // Expands a superblock to `words`, its exceptions put right.
  void expand(const uint8_t* panel, int64_t superblock, uint8_t* words) {
    for (int at = 0; at < 64; at += sizeof(VI)) {
      VI lines[4];
      bf12_lines(panel + 64 + superblock * kBf12SuperblockBytes + at, load_words(panel + at), lines);
      for (int j = 0; j < 4; ++j) __builtin_memcpy(words + 64 * j + at, &lines[j], sizeof lines[j]);
    }
    for (; next < end && entry() >> 15 <= superblock; next += 4) {
      if (entry() >> 15 != superblock) continue;
      uint8_t* const at = words + (entry() >> 8) % 128 * 2;
      uint16_t word;
      __builtin_memcpy(&word, at, 2);
      word = (uint16_t)((word & 0x807f) | (entry() & 255) << 7);
      __builtin_memcpy(at, &word, 2);
    }
  }
};

// R rows of x, of X::kBytes a column, against H vectors of a panel, summed in the order of bf16's tile.
template <typename X, int R, int H>
GEMLET_INLINE void tile_bf12(const uint8_t* const* x, const uint8_t* panel, int h0, int64_t cols, VF (&sums)[R][H]) {
  constexpr int64_t kStep = kBf12Columns * X::kBytes;
  const int64_t superblocks = (cols + kBf12Columns - 1) / kBf12Columns, whole = cols / kBf12Columns;
  Bf12Exceptions exceptions(panel, superblocks);
  VF odd[R][H] = {};
  Words base[H];
  for (int h = 0; h < H; ++h) base[h] = load_words(panel + (h0 + h) * kLanes * 4);
  const uint8_t* at = panel + 64 + h0 * kLanes * 4;
  int64_t s = 0;
  for (;;) {
    const int64_t stop = exceptions.superblock(whole);
    for (; s < stop; ++s, at += kBf12SuperblockBytes) {
      for (int h = 0; h < H; ++h) {
        VI lines[4];
        bf12_lines(at + h * kLanes * 4, base[h], lines);
        for (int j = 0; j < 4; ++j) X::template add<R, H>(x, s * kStep + j * 2 * X::kBytes, j, lines[j], h, sums, odd);
      }
    }
    if (s == superblocks) break;
    alignas(64) uint8_t words[kBf12WordBytes];
    alignas(64)
        uint8_t columns[R][kStep];  // behind the last float -0, which leaves every sum as it is; bf16 has none behind
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
        const VI line = load_i32(words + j * 64 + (h0 + h) * kLanes * 4);
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

// The same product with the panels as bf16, in a.scratch.
inline MatmulArgs expanded(const MatmulArgs& a) {
  MatmulArgs args = a;
  const int64_t superblocks = (a.cols + kBf12Columns - 1) / kBf12Columns;
  args.panels = a.scratch;
  args.panel_stride = superblocks * kBf12WordBytes;
  uint8_t* to = a.scratch;
  const uint8_t* panel = a.panels;
  for (int64_t output = 0; output < a.outputs; output += 16, panel += a.panel_stride) {
    Bf12Exceptions exceptions(panel, superblocks);
    for (int64_t s = 0; s < superblocks; ++s, to += kBf12WordBytes) exceptions.expand(panel, s, to);
  }
  return args;
}

}  // namespace
}  // namespace gemlet::kernels
