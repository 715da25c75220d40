// Reads packed matrices in kernels (formats/formats.h): panels of 16 rows, in lines of 16 rows x 4 bytes.
#pragma once

#include "formats/layout.h"
#include "kernels/cuda/device.h"

namespace gemlet::cuda {

__device__ __forceinline__ const uint8_t* panel_of(const Weight& weight, int64_t panel) {
  return weight.data + panel * weight.panel_bytes;
}

__device__ __forceinline__ uint32_t load_word(const uint8_t* at) { return *reinterpret_cast<const uint32_t*>(at); }

__device__ __forceinline__ uint4 load_16(const uint8_t* at) { return *reinterpret_cast<const uint4*>(at); }

__device__ __forceinline__ uint32_t swap_bytes(uint32_t pair) {
  return (pair & 0x00ff00ffu) << 8 | (pair >> 8 & 0x00ff00ffu);
}

// Makes two bf16 numbers from the kept bits and the codes of two bf12 weights and from the base of their row. Each
// argument has 16 bits for each of the two weights.
__device__ __forceinline__ uint32_t bf12_pair(uint32_t kept, uint32_t codes, uint32_t base) {
  uint32_t pair = kept & 0x807f807fu;
  codes &= 0x07800780u;
  const uint32_t low = codes & 0xffffu, high = codes & 0xffff0000u;
  if (low) pair |= (low + (base & 0xffffu)) & 0xffffu;
  if (high) pair |= (high + (base & 0xffff0000u)) & 0xffff0000u;
  return pair;
}

// Expands one row of a bf12 superblock, which has four pairs of columns. `words` are the words of this row in the three
// lines of the superblock.
__device__ __forceinline__ void bf12_pairs(const uint32_t (&words)[3], uint32_t base, uint32_t (&pairs)[4]) {
  const uint32_t codes = words[2];
  pairs[0] = bf12_pair(words[0], codes, base);
  pairs[1] = bf12_pair(swap_bytes(words[0]), codes >> 4 & 0x0fff0fffu, base);
  pairs[2] = bf12_pair(words[1], codes << 4 & 0xfff0fff0u, base);
  pairs[3] = bf12_pair(swap_bytes(words[1]), swap_bytes(codes), base);
}

// Calls fn(place, exponent) for each exception that thread `first` of `step` threads handles. Places count the panel's
// weights in the order of bf16. The list may come from a damaged file, so its count and its places are checked.
template <typename Function>
__device__ __forceinline__ void for_bf12_exceptions(const uint8_t* panel, int64_t cols, int64_t first, int64_t step,
                                                    const Function& fn) {
  const uint8_t* const list = panel + bf12_exceptions_at(cols);
  const int64_t told = load_word(list), most = most_bf12_exceptions(cols);
  const int64_t count = told < most ? told : most;
  const int64_t places = bf12_superblocks(cols) * kBf12Words;
  for (int64_t i = first; i < count; i += step) {
    const uint32_t entry = load_word(list + 4 * (i + 1));
    if (static_cast<int64_t>(entry >> 8) < places) fn(static_cast<int64_t>(entry >> 8), entry & 255u);
  }
}

// The 16 bits of a bf12 weight, if it is not an exception.
__device__ __forceinline__ uint32_t bf12_bits(const uint8_t* panel, int64_t row, int64_t col) {
  const uint8_t* const block = panel + kLineBytes + col / kBf12Columns * kBf12SuperblockBytes + row * kUnitBytes;
  const uint32_t words[3] = {load_word(block), load_word(block + kLineBytes), load_word(block + 2 * kLineBytes)};
  uint32_t pairs[4];
  bf12_pairs(words, load_word(panel + row * kUnitBytes), pairs);
  const uint32_t pair = pairs[col % kBf12Columns / 2];
  return col % 2 ? pair >> 16 : pair & 0xffffu;
}

// Reads the 16 bytes of four rows as four words, one for each row.
__device__ __forceinline__ void words_of(const uint8_t* at, uint32_t (&words)[4]) {
  const uint4 all = load_16(at);
  words[0] = all.x;
  words[1] = all.y;
  words[2] = all.z;
  words[3] = all.w;
}

// The part of a panel that one lane reads in a step of its warp. With quad = lane % 4, it reads the rows 4 * quad to
// 4 * quad + 3. With group = lane / 4, it reads kCount columns of these rows: up to four from column() on, and each
// next four kApart columns further on.
template <Format kFormat>
struct Reader;

// A line has one column of f32 or two columns of bf16. Lanes behind the last line read nothing.
template <>
struct Reader<Format::kF32> {
  static constexpr int kCount = 1, kStepColumns = 8;
  static constexpr int kApart = 4;
  __device__ static __forceinline__ int64_t column(int64_t step, int group) { return step * 8 + group; }
  __device__ static __forceinline__ void read(const Weight& weight, const uint8_t* panel, int64_t step, int group,
                                              int quad, float (&w)[4][1]) {
    const int64_t line = step * 8 + group;
    uint32_t words[4] = {0, 0, 0, 0};
    if (line < weight.cols) words_of(panel + line * kLineBytes + quad * 16, words);
    for (int r = 0; r < 4; ++r) w[r][0] = bits_to_f32(words[r]);
  }
};

template <>
struct Reader<Format::kBf16> {
  static constexpr int kCount = 2, kStepColumns = 16;
  static constexpr int kApart = 4;
  __device__ static __forceinline__ int64_t column(int64_t step, int group) { return (step * 8 + group) * 2; }
  __device__ static __forceinline__ void read(const Weight& weight, const uint8_t* panel, int64_t step, int group,
                                              int quad, float (&w)[4][2]) {
    const int64_t line = step * 8 + group;
    uint32_t words[4] = {0, 0, 0, 0};
    if (line * 2 < weight.cols) words_of(panel + line * kLineBytes + quad * 16, words);
    for (int r = 0; r < 4; ++r) {
      w[r][0] = bf16_low(words[r]);
      w[r][1] = bf16_high(words[r]);
    }
  }
};

// Each group of lanes reads one superblock, without its exceptions.
template <>
struct Reader<Format::kBf12> {
  static constexpr int kCount = 8, kStepColumns = 64;
  static constexpr int kApart = 4;
  __device__ static __forceinline__ int64_t column(int64_t step, int group) { return (step * 8 + group) * 8; }
  __device__ static __forceinline__ void read(const Weight& weight, const uint8_t* panel, int64_t step, int group,
                                              int quad, float (&w)[4][8]) {
    const int64_t superblock = step * 8 + group;
    uint32_t lines[3][4] = {}, bases[4] = {};
    if (superblock < bf12_superblocks(weight.cols)) {
      const uint8_t* const at = panel + kLineBytes + superblock * kBf12SuperblockBytes + quad * 16;
      for (int line = 0; line < 3; ++line) words_of(at + line * kLineBytes, lines[line]);
      words_of(panel + quad * 16, bases);
    }
    for (int r = 0; r < 4; ++r) {
      const uint32_t words[3] = {lines[0][r], lines[1][r], lines[2][r]};
      uint32_t pairs[4];
      bf12_pairs(words, bases[r], pairs);
      for (int i = 0; i < 4; ++i) {
        w[r][2 * i] = bf16_low(pairs[i]);
        w[r][2 * i + 1] = bf16_high(pairs[i]);
      }
    }
  }
};

// A warp reads half a superblock of q8, which is 8 lines.
template <>
struct Reader<Format::kQ8> {
  static constexpr int kCount = 4, kStepColumns = 32;
  static constexpr int kApart = 4;
  __device__ static __forceinline__ int64_t column(int64_t step, int group) { return step * 32 + group * 4; }
  __device__ static __forceinline__ void read(const Weight&, const uint8_t* panel, int64_t step, int group, int quad,
                                              float (&w)[4][4]) {
    const uint8_t* const block = panel + step / 2 * kQ8SuperblockBytes;
    uint32_t words[4];
    words_of(block + kScaleBytes + (step % 2 * 8 + group) * kLineBytes + quad * 16, words);
    const uint16_t* const scales = reinterpret_cast<const uint16_t*>(block) + step % 2 * kPanelRows + quad * 4;
    for (int r = 0; r < 4; ++r) {
      const float scale = f16_to_f32(scales[r]);
      for (int i = 0; i < 4; ++i) {
        w[r][i] = static_cast<float>(static_cast<int>(words[r] >> 8 * i & 255) - kQ8Zero) * scale;
      }
    }
  }
};

// Formats of four to six bits (formats/formats.h). A warp reads a superblock. A lane has one line of a block's low
// bits.
template <Format kFormat>
struct BlockReader {
  static constexpr int kCount = 8, kStepColumns = kSuperblock;
  static constexpr int kApart = 16;
  static constexpr bool kGroups = kFormat == Format::kQ4k || kFormat == Format::kQ5k || kFormat == Format::kQ6k;
  static constexpr bool kFive = kFormat == Format::kQ5 || kFormat == Format::kQ5k, kSix = kFormat == Format::kQ6k;
  static constexpr int64_t kBlockBytes = kSix ? kQ6BlockBytes : kFive ? kQ5BlockBytes : kQ4BlockBytes;
  static constexpr int64_t kSuperblockBytes = kScaleBytes + 2 * kBlockBytes;
  static constexpr int kZero = kSix ? kQ6Zero : kFormat == Format::kQ5 ? kQ5Zero : kFormat == Format::kQ4 ? kQ4Zero : 0;

  __device__ static __forceinline__ int64_t column(int64_t step, int group) {
    return step * kSuperblock + group / 4 * kBlock + group % 4 * 4;
  }
  __device__ static __forceinline__ void read(const Weight&, const uint8_t* panel, int64_t step, int group, int quad,
                                              float (&w)[4][8]) {
    const int block = group / 4, line = group % 4;
    const int64_t group_line = kGroups ? (step / kGroupSuperblocks + 1) * kLineBytes : 0;
    const uint8_t* const scales = panel + step * kSuperblockBytes + group_line;
    const uint8_t* const lines = scales + kScaleBytes + block * kBlockBytes + quad * 16;
    uint32_t low[4], upper[4] = {}, last[4] = {};
    words_of(lines + line * kLineBytes, low);
    if constexpr (kFive || kSix) words_of(lines + 4 * kLineBytes, upper);
    if constexpr (kSix) words_of(lines + 5 * kLineBytes, last);
    for (int r = 0; r < 4; ++r) {
      const int row = quad * 4 + r;
      float scale[2], minimum = 0;  // a run has its own scale
      if constexpr (kGroups) {
        // The line of d and m is before the first superblock of the group.
        const uint16_t* const dm =
            reinterpret_cast<const uint16_t*>(scales - step % kGroupSuperblocks * kSuperblockBytes - kLineBytes);
        const float d = f16_to_f32(dm[row]);
        if constexpr (kSix) {
          for (int run = 0; run < 2; ++run) {
            scale[run] = d * static_cast<float>(static_cast<int8_t>(scales[(2 * block + run) * kPanelRows + row]));
          }
        } else {
          scale[0] = scale[1] = d * static_cast<float>(scales[2 * block * kPanelRows + row]);
          minimum = f16_to_f32(dm[kPanelRows + row]) * static_cast<float>(scales[(2 * block + 1) * kPanelRows + row]);
        }
      } else {
        scale[0] = scale[1] = f16_to_f32(reinterpret_cast<const uint16_t*>(scales)[block * kPanelRows + row]);
      }
      for (int i = 0; i < 4; ++i) {
        const int byte = static_cast<int>(low[r] >> 8 * i & 255);
        int q[2] = {byte & 15, byte >> 4};
        const int bits = static_cast<int>(upper[r] >> 8 * i & 255), more = static_cast<int>(last[r] >> 8 * i & 255);
        if constexpr (kFive) {
          q[0] |= (bits >> line & 1) << 4;
          q[1] |= (bits >> (4 + line) & 1) << 4;
        }
        if constexpr (kSix) {
          q[0] |= (bits >> 2 * line & 3) << 4;
          q[1] |= (more >> 2 * line & 3) << 4;
        }
        for (int run = 0; run < 2; ++run) {
          const float value = static_cast<float>(q[run] - kZero) * scale[run];
          w[r][run * 4 + i] = minimum == 0.0f ? value : value - minimum;
        }
      }
    }
  }
};
template <>
struct Reader<Format::kQ6k> : BlockReader<Format::kQ6k> {};
template <>
struct Reader<Format::kQ5k> : BlockReader<Format::kQ5k> {};
template <>
struct Reader<Format::kQ5> : BlockReader<Format::kQ5> {};
template <>
struct Reader<Format::kQ4k> : BlockReader<Format::kQ4k> {};
template <>
struct Reader<Format::kQ4> : BlockReader<Format::kQ4> {};

// Formats with one scale for a row. A warp reads half a superblock of r8, one of r4, or two of r2. A line of r4 is like
// one of q4, and a line of r2 has 16 columns.
template <Format kFormat>
struct RowReader {
  static constexpr bool kEight = kFormat == Format::kR8, kTwo = kFormat == Format::kR2;
  static constexpr int kCount = kEight ? 4 : kTwo ? 16 : 8;
  static constexpr int kStepColumns = 8 * kCount, kApart = kEight ? 4 : 16;
  static constexpr int kBits = kEight ? 8 : kTwo ? 2 : 4;
  static constexpr int kZero = kEight ? kQ8Zero : kTwo ? kR2Zero : kQ4Zero;

  __device__ static __forceinline__ int64_t column(int64_t step, int group) {
    if constexpr (kEight) return step * kStepColumns + group * 4;
    return step * kStepColumns + group / 4 * (kStepColumns / 2) + group % 4 * 4;
  }
  __device__ static __forceinline__ void read(const Weight& weight, const uint8_t* panel, int64_t step, int group,
                                              int quad, float (&w)[4][kCount]) {
    const int64_t line = step * 8 + group, columns = kLineBytes * 8 / kBits / kPanelRows;  // columns of a line
    const bool exists = line * columns < (weight.cols + kSuperblock - 1) / kSuperblock * kSuperblock;
    uint32_t words[4] = {}, scales[4];
    if (exists) words_of(panel + kRowScaleBytes + line * kLineBytes + quad * 16, words);
    words_of(panel + quad * 16, scales);
    for (int r = 0; r < 4; ++r) {
      const float scale = exists ? bits_to_f32(scales[r]) : 0.0f;
      for (int i = 0; i < kCount; ++i) {
        const int q = static_cast<int>(words[r] >> (8 * (i % 4) + kBits * (i / 4)) & ((1 << kBits) - 1));
        w[r][i] = static_cast<float>(q - kZero) * scale;
      }
    }
  }
};
template <>
struct Reader<Format::kR8> : RowReader<Format::kR8> {};
template <>
struct Reader<Format::kR4> : RowReader<Format::kR4> {};
template <>
struct Reader<Format::kR2> : RowReader<Format::kR2> {};

// Reads one weight in the same way as the lane that has it in a product.
template <Format kFormat>
__device__ __forceinline__ float read_one(const Weight& weight, const uint8_t* panel, int64_t row, int64_t col) {
  using Read = Reader<kFormat>;
  float w[4][Read::kCount];
  const int64_t step = col / Read::kStepColumns, rest = col % Read::kStepColumns;
  int group, i;
  if constexpr (Read::kApart == 16) {
    constexpr int kSpan = 4 * Read::kCount;  // columns that four lanes read
    group = static_cast<int>(rest / kSpan * 4 + rest % 16 / 4);
    i = static_cast<int>(rest % kSpan / 16 * 4 + rest % 4);
  } else {
    group = static_cast<int>(rest / Read::kCount);
    i = static_cast<int>(rest % Read::kCount);
  }
  Read::read(weight, panel, step, group, static_cast<int>(row / 4), w);
  return w[row % 4][i];
}

// Reads one weight of any format. This is slow for bf12, because all exceptions of the panel have to be searched.
__device__ __forceinline__ float weight_at(const Weight& weight, int64_t row, int64_t col) {
  const uint8_t* const panel = panel_of(weight, row / kPanelRows);
  const int64_t r = row % kPanelRows;
  switch (weight.format) {
    case Format::kF32:
      return read_one<Format::kF32>(weight, panel, r, col);
    case Format::kBf16:
      return read_one<Format::kBf16>(weight, panel, r, col);
    case Format::kQ8:
      return read_one<Format::kQ8>(weight, panel, r, col);
    case Format::kQ6k:
      return read_one<Format::kQ6k>(weight, panel, r, col);
    case Format::kQ5k:
      return read_one<Format::kQ5k>(weight, panel, r, col);
    case Format::kQ5:
      return read_one<Format::kQ5>(weight, panel, r, col);
    case Format::kQ4k:
      return read_one<Format::kQ4k>(weight, panel, r, col);
    case Format::kQ4:
      return read_one<Format::kQ4>(weight, panel, r, col);
    case Format::kR8:
      return read_one<Format::kR8>(weight, panel, r, col);
    case Format::kR4:
      return read_one<Format::kR4>(weight, panel, r, col);
    case Format::kR2:
      return read_one<Format::kR2>(weight, panel, r, col);
    case Format::kBf12:
      break;
    case Format::kW4a16:  // CudaBackend::multiplies() refuses it
      return 0.0f;
  }
  uint32_t bits = bf12_bits(panel, r, col);
  const int64_t place = col / kBf12Columns * kBf12Words + col % kBf12Columns / 2 * 32 + r * 2 + col % 2;
  for_bf12_exceptions(panel, weight.cols, 0, 1, [&](int64_t at, uint32_t exponent) {
    if (at == place) bits = (bits & kBf12Kept) | exponent << 7;
  });
  return bits_to_f32(bits << 16);
}

}  // namespace gemlet::cuda
