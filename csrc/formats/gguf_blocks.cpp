// The layouts of the blocks, with the bytes in the order of the file. d and m: scale and minimum, f16. q: the integers
// of the block's values. h: further bits of q.
//
//   type    bytes                   value
//   q4_0    d, 16 of q              d (q - 8)
//   q4_1    d, m, 16 of q           d q + m
//   q5_0    d, 4 of h, 16 of q      d (q - 16)
//   q5_1    d, m, 4 of h, 16 of q   d q + m
//   q8_0    d, 32 of q              d q, q signed
//   iq4_nl  d, 16 of q              d kIq4[q]
//
// If q has four bits, byte i of q holds value i in its low half and value i + 16 in its high half. Bit i of h is the
// fifth bit of value i.
//
// The other types hold 256 values in groups. Each group has a small integer scale s (and minimum m), which is
// multiplied by d (and dmin):
//
//   q2_k    16 bytes of (s low half, m high half), 64 of q, d, dmin    16 groups of 16, q of two bits
//   q3_k    32 of h, 64 of q, 12 of s, d                               16 groups of 16, q of two bits, the third in h
//   q4_k    d, dmin, 12 of (s, m), 128 of q                            8 groups of 32
//   q5_k    d, dmin, 12 of (s, m), 32 of h, 128 of q                   8 groups of 32, the fifth bit in h
//   q6_k    128 of q, 64 of h, 16 of s (signed), d                     16 groups of 16, the upper two bits in h
//   iq4_xs  d, 2 of s (upper bits), 4 of s (lower bits), 128 of q      8 groups of 32, kIq4[q]
#include "formats/gguf_blocks.h"

#include <cstring>

#include "base/float_bits.h"

namespace gemlet {
namespace {

constexpr int kHalf = 16;  // the low halves of a block's bytes hold this many of its 32 values

constexpr int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

inline uint16_t half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return bits;
}

inline float float_at(const uint8_t* p) { return f16_to_f32(half_at(p)); }

inline uint32_t word_at(const uint8_t* p) {
  uint32_t bits;
  std::memcpy(&bits, p, 4);
  return bits;
}

template <typename Value>
inline void each_nibble(const uint8_t* bytes, const Value& value) {
  for (int i = 0; i < kHalf; ++i) value(i, bytes[i] & 15);
  for (int i = 0; i < kHalf; ++i) value(i + kHalf, bytes[i] >> 4);
}

void decode_with_minimum(const uint8_t* block, bool fifth_bit, float* out) {  // q4_1, q5_1
  const float d = float_at(block), m = float_at(block + 2);
  const uint32_t high = fifth_bit ? word_at(block + 4) : 0;
  each_nibble(block + (fifth_bit ? 8 : 4),
              [&](int i, int q) { out[i] = d * static_cast<float>(q | static_cast<int>(high >> i & 1) << 4) + m; });
}

void decode_q2_k(const uint8_t* block, float* out) {
  const float d = float_at(block + 80), dmin = float_at(block + 82);
  const uint8_t* scales = block;
  const uint8_t* bytes = block + 16;
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(scales[group] & 15),
                least = dmin * static_cast<float>(scales[group] >> 4);
    const uint8_t* q = bytes + group / 8 * 32 + group % 2 * 16;
    const int shift = group % 8 / 2 * 2;
    for (int i = 0; i < 16; ++i) out[group * 16 + i] = scale * static_cast<float>(q[i] >> shift & 3) - least;
  }
}

void decode_q3_k(const uint8_t* block, float* out) {
  const uint8_t* high = block;
  const uint8_t* bytes = block + 32;
  const uint8_t* scales = block + 96;
  const float d = float_at(block + 108);
  for (int group = 0; group < 16; ++group) {
    const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
    const int scale = (low | (scales[8 + group % 4] >> group / 4 * 2 & 3) << 4) - 32;
    const float step = d * static_cast<float>(scale);
    const uint8_t* q = bytes + group / 8 * 32 + group % 2 * 16;
    const uint8_t* h = high + group % 2 * 16;
    const int shift = group % 8 / 2 * 2, bit = group / 2;
    for (int i = 0; i < 16; ++i) {
      out[group * 16 + i] = step * static_cast<float>((q[i] >> shift & 3) - (h[i] >> bit & 1 ? 0 : 4));
    }
  }
}

GroupedBlock split_q45_k(const uint8_t* block, bool fifth_bit) {
  GroupedBlock split = {half_at(block), half_at(block + 2), {}, {}};
  const uint8_t* packed = block + 4;
  const uint8_t* high = block + 16;
  const uint8_t* bytes = block + (fifth_bit ? 48 : 16);
  for (int group = 0; group < 8; ++group) {
    int scale, least;  // six bits each; the upper two bits of groups 4 to 7 are in the bytes of groups 0 to 3
    if (group < 4) {
      scale = packed[group] & 63;
      least = packed[group + 4] & 63;
    } else {
      scale = (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
      least = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    }
    split.small[2 * group] = static_cast<uint8_t>(scale);
    split.small[2 * group + 1] = static_cast<uint8_t>(least);
    const uint8_t* q = bytes + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int fifth = fifth_bit ? (high[i] >> group & 1) << 4 : 0;
      split.q[group * 32 + i] = static_cast<uint8_t>((q[i] >> shift & 15) | fifth);
    }
  }
  return split;
}

GroupedBlock split_q6_k(const uint8_t* block) {
  GroupedBlock split = {half_at(block + 208), 0, {}, {}};
  std::memcpy(split.small, block + 192, 16);
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  for (int group = 0; group < 16; ++group) {
    const int half = group / 8, quarter = group % 8 / 2, first = group % 2 * 16;  // 128, 32 and 16 values
    const uint8_t* q = low + half * 64 + quarter % 2 * 32 + first;
    const uint8_t* h = high + half * 32 + first;
    const int shift = quarter / 2 * 4, high_shift = quarter * 2;
    for (int i = 0; i < 16; ++i) {
      split.q[group * 16 + i] = static_cast<uint8_t>((q[i] >> shift & 15) | (h[i] >> high_shift & 3) << 4);
    }
  }
  return split;
}

void decode_groups(SourceType type, const uint8_t* block, float* out) {
  const GroupedBlock split = grouped_block(type, block);
  const float d = f16_to_f32(split.scale), dmin = f16_to_f32(split.minimum);
  for (int i = 0; i < 256; ++i) {
    if (type == SourceType::kQ6_K) {
      const float step = d * static_cast<float>(static_cast<int8_t>(split.small[i / 16]));
      out[i] = step * static_cast<float>(split.q[i] - 32);
    } else {
      const float step = d * static_cast<float>(split.small[i / 32 * 2]);
      out[i] = step * static_cast<float>(split.q[i]) - dmin * static_cast<float>(split.small[i / 32 * 2 + 1]);
    }
  }
}

void decode_iq4_xs(const uint8_t* block, float* out) {
  const float d = float_at(block);
  const int upper = half_at(block + 2);
  for (int group = 0; group < 8; ++group) {
    const int lower = block[4 + group / 2] >> group % 2 * 4 & 15;
    const float step = d * static_cast<float>((lower | (upper >> group * 2 & 3) << 4) - 32);
    each_nibble(block + 8 + group * 16,
                [&](int i, int q) { out[group * 32 + i] = step * static_cast<float>(kIq4[q]); });
  }
}

void decode_block(SourceType type, const uint8_t* block, float* out) {
  switch (type) {
    case SourceType::kQ4_1:
    case SourceType::kQ5_1:
      return decode_with_minimum(block, type == SourceType::kQ5_1, out);
    case SourceType::kQ2_K:
      return decode_q2_k(block, out);
    case SourceType::kQ3_K:
      return decode_q3_k(block, out);
    case SourceType::kQ4_K:
    case SourceType::kQ5_K:
    case SourceType::kQ6_K:
      return decode_groups(type, block, out);
    case SourceType::kIq4Xs:
      return decode_iq4_xs(block, out);
    default: {
      int8_t q[2 * kHalf];
      const float d = f16_to_f32(integer_block(type, block, q));
      for (int i = 0; i < 2 * kHalf; ++i) out[i] = d * static_cast<float>(q[i]);
    }
  }
}

}  // namespace

bool has_integer_blocks(SourceType type) {
  return type == SourceType::kQ4_0 || type == SourceType::kQ5_0 || type == SourceType::kQ8_0 ||
         type == SourceType::kIq4Nl;
}

uint16_t integer_block(SourceType type, const uint8_t* block, int8_t* q) {
  if (type == SourceType::kQ4_0) {
    each_nibble(block + 2, [&](int i, int value) { q[i] = static_cast<int8_t>(value - 8); });
  } else if (type == SourceType::kQ5_0) {
    const uint32_t high = word_at(block + 2);
    each_nibble(block + 6, [&](int i, int value) {
      q[i] = static_cast<int8_t>((value | static_cast<int>(high >> i & 1) << 4) - 16);
    });
  } else if (type == SourceType::kIq4Nl) {
    each_nibble(block + 2, [&](int i, int value) { q[i] = kIq4[value]; });
  } else {
    std::memcpy(q, block + 2, 2 * kHalf);  // q8_0
  }
  return half_at(block);
}

GroupedBlock grouped_block(SourceType type, const uint8_t* block) {
  return type == SourceType::kQ6_K ? split_q6_k(block) : split_q45_k(block, type == SourceType::kQ5_K);
}

void decode_blocks(SourceType type, const uint8_t* blocks, int64_t count, float* out) {
  const int64_t bytes = source_block_bytes(type), values = source_block_values(type);
  for (int64_t i = 0; i < count; ++i) decode_block(type, blocks + i * bytes, out + i * values);
}

}  // namespace gemlet
