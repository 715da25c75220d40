// The definition of the matmul kernels, in plain loops. The inner loops are 16 outputs wide, so that any compiler can
// vectorize them a little.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "base/float_bits.h"
#include "formats/bf12.h"
#include "formats/blocks.h"
#include "formats/formats.h"
#include "formats/row_scaled.h"
#include "kernels/matmul/matmul.h"

namespace gemlet::kernels::scalar {
namespace {

void store(const MatmulArgs& a, int64_t row, int64_t panel, const float* sums) {
  const int64_t first = panel * kPanelRows;
  const int64_t count = a.outputs - first < kPanelRows ? a.outputs - first : kPanelRows;
  memcpy(a.y + row * a.y_stride + first, sums, static_cast<size_t>(count) * sizeof(float));
}

// Calls product(x_row, panel, sums[16]) for every row and every panel.
template <typename Product>
void for_each_panel(const MatmulArgs& a, Product product) {
  const int64_t panels = panel_count(a.outputs);
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t r = 0; r < a.rows; ++r) {
      float sums[kPanelRows] = {};
      product(static_cast<const uint8_t*>(a.x) + r * a.x_stride, a.panels + p * a.panel_stride, sums);
      store(a, r, p, sums);
    }
  }
}

// The weights of a q8 block. at() returns the unsigned stored weight of output o at column c of the block.
struct Q8 {
  static constexpr Format kFormat = Format::kQ8;
  static constexpr int64_t kSuperblockBytes = kQ8SuperblockBytes;
  static constexpr int64_t kBlockBytes = kQ8BlockBytes;
  static int32_t at(const uint8_t* lines, int64_t o, int64_t c) { return lines[c / 4 * kLineBytes + o * 4 + c % 4]; }
};
struct Q4 {
  static constexpr Format kFormat = Format::kQ4;
  static constexpr int64_t kSuperblockBytes = kQ4SuperblockBytes;
  static constexpr int64_t kBlockBytes = kQ4BlockBytes;
  static int32_t at(const uint8_t* lines, int64_t o, int64_t c) {
    const uint8_t byte = lines[c % 16 / 4 * kLineBytes + o * 4 + c % 4];
    return c < 16 ? byte & 15 : byte >> 4;
  }
};

// The weights of q5, q4k, q5k and q6k, which formats/blocks.h reads.
template <Format format>
void matmul_i8_bits(const MatmulArgs& a) {
  const int64_t cols = a.cols;
  for_each_panel(a, [cols](const uint8_t* x, const uint8_t* panel, float* sums) {
    constexpr int64_t kPart = format == Format::kQ6k ? kBlock / 2 : kBlock;
    const int8_t* q = reinterpret_cast<const int8_t*>(x);
    const float* scales = reinterpret_cast<const float*>(x + cols);
    const int32_t* offsets = reinterpret_cast<const int32_t*>(x + cols + cols / kBlock * 4);
    for (int64_t c = 0; c < cols; c += kPart) {
      const int64_t b = c / kBlock;
      const uint8_t* lines = panel + superblock_offset(format, b / 2) + kScaleBytes + b % 2 * block_bytes(format);
      int32_t start = has_minimum(format) ? 0 : offsets[b];
      if (format == Format::kQ6k) start = kQ6Zero * half_offset(offsets[b], static_cast<int>(c % kBlock / kPart));
      for (int64_t o = 0; o < kPanelRows; ++o) {
        int32_t dot = start;
        for (int64_t i = c; i < c + kPart; ++i) dot += stored_weight(format, lines, o, i % kBlock) * q[i];
        const BlockScale weight = block_scale(format, panel, o, c / (kBlock / 2));
        sums[o] += static_cast<float>(dot) * (weight.scale * scales[b]);
        if (has_minimum(format)) sums[o] += weight.minimum * (static_cast<float>(offsets[b]) * scales[b]);
      }
    }
  });
}

template <typename Weight>
void matmul_i8(const MatmulArgs& a) {
  const int64_t cols = a.cols;
  for_each_panel(a, [cols](const uint8_t* x, const uint8_t* panel, float* sums) {
    const int8_t* q = reinterpret_cast<const int8_t*>(x);
    const float* scales = reinterpret_cast<const float*>(x + cols);
    const int32_t* offsets = reinterpret_cast<const int32_t*>(x + cols + cols / kBlock * 4);
    for (int64_t b = 0; b < cols / kBlock; ++b) {
      const uint8_t* superblock = panel + b / 2 * Weight::kSuperblockBytes;
      const uint8_t* lines = superblock + kScaleBytes + b % 2 * Weight::kBlockBytes;
      int32_t dots[kPanelRows];
      for (int64_t o = 0; o < kPanelRows; ++o) dots[o] = offsets[b];
      for (int64_t c = 0; c < kBlock; ++c) {
        for (int64_t o = 0; o < kPanelRows; ++o) dots[o] += Weight::at(lines, o, c) * q[b * kBlock + c];
      }
      for (int64_t o = 0; o < kPanelRows; ++o) {
        uint16_t bits;
        memcpy(&bits, superblock + (b % 2 * kPanelRows + o) * 2, 2);
        sums[o] += static_cast<float>(dots[o]) * (f16_to_f32(bits) * scales[b]);
      }
    }
  });
}

// The weight of output o at column c of a panel of `cols` columns, rounded to bf16.
template <typename Weight>
float rounded_weight(const uint8_t* panel, int64_t, int64_t o, int64_t c) {
  const uint8_t* superblock = panel + c / kSuperblock * Weight::kSuperblockBytes;
  const int64_t half = c / kBlock % 2;
  const uint8_t* lines = superblock + kScaleBytes + half * Weight::kBlockBytes;
  uint16_t bits;
  memcpy(&bits, superblock + (half * kPanelRows + o) * 2, 2);
  const int32_t q = Weight::at(lines, o, c % kBlock) - zero_point(Weight::kFormat);
  return bf16_to_f32(f32_to_bf16(static_cast<float>(q) * f16_to_f32(bits)));
}
template <typename Weight>
  requires requires { Weight::kBitsFormat; }
float rounded_weight(const uint8_t* panel, int64_t, int64_t o, int64_t c) {
  constexpr Format format = Weight::kBitsFormat;
  const int64_t b = c / kBlock;
  const uint8_t* lines = panel + superblock_offset(format, b / 2) + kScaleBytes + b % 2 * block_bytes(format);
  const BlockScale scale = block_scale(format, panel, o, c / (kBlock / 2));
  const int32_t q = stored_weight(format, lines, o, c % kBlock) - zero_point(format);
  return bf16_to_f32(f32_to_bf16(static_cast<float>(q) * scale.scale - scale.minimum));
}
template <Format format>
struct Bits {
  static constexpr Format kBitsFormat = format;
};
struct Bf16;
template <>
float rounded_weight<Bf16>(const uint8_t* panel, int64_t, int64_t o, int64_t c) {
  return bf16_to_f32(reinterpret_cast<const uint16_t*>(panel)[(c / 2 * kPanelRows + o) * 2 + c % 2]);
}
struct Bf12;
template <>
float rounded_weight<Bf12>(const uint8_t* panel, int64_t cols, int64_t o, int64_t c) {
  uint16_t words[kBf12Words];
  expand_bf12(panel, cols, c / kBf12Columns, words);
  return bf16_to_f32(words[(c % kBf12Columns / 2 * kPanelRows + o) * 2 + c % 2]);
}

// Products with bf12 weights. column(x, c) returns column c of a row of x.
template <typename Column>
void matmul_bf12(const MatmulArgs& a, Column column) {
  const int64_t cols = a.cols;
  for_each_panel(a, [cols, column](const uint8_t* x, const uint8_t* panel, float* sums) {
    uint16_t words[kBf12Words];
    for (int64_t c = 0; c < cols; ++c) {
      if (c % kBf12Columns == 0) expand_bf12(panel, cols, c / kBf12Columns, words);
      const uint16_t* line = words + c % kBf12Columns / 2 * kPanelRows * 2 + c % 2;
      for (int64_t o = 0; o < kPanelRows; ++o) sums[o] += column(x, c) * bf16_to_f32(line[o * 2]);
    }
  });
}

// Products with weights in r8, r4 and r2. Number is the type of the sums. x(row, c) returns column c of a row.
// scale(row) returns the factor by which a sum is multiplied in addition to the scale of the weights.
template <Format format, typename Number, typename X, typename Scale>
void matmul_rows(const MatmulArgs& a, X x, Scale scale) {
  for (int64_t o = 0; o < a.outputs; ++o) {
    const uint8_t* panel = a.panels + o / kPanelRows * a.panel_stride;
    for (int64_t r = 0; r < a.rows; ++r) {
      Number sum = 0;
      for (int64_t c = 0; c < a.cols; ++c) {
        const int32_t q = row_scaled_weight(format, panel, o % kPanelRows, c) - zero_point(format);
        sum += x(r, c) * static_cast<Number>(q);
      }
      a.y[r * a.y_stride + o] = static_cast<float>(sum) * (row_scale(panel, o % kPanelRows) * scale(r));
    }
  }
}
template <Format format>
void matmul_f32_rows(const MatmulArgs& a) {
  matmul_rows<format, float>(
      a,
      [&](int64_t r, int64_t c) {
        return reinterpret_cast<const float*>(static_cast<const uint8_t*>(a.x) + r * a.x_stride)[c];
      },
      [](int64_t) { return 1.0f; });
}
template <Format format>
void matmul_s8_rows(const MatmulArgs& a) {
  const auto row = [&](int64_t r) { return static_cast<const uint8_t*>(a.x) + r * a.x_stride; };
  matmul_rows<format, int32_t>(
      a, [&](int64_t r, int64_t c) -> int32_t { return static_cast<int8_t>(row(r)[c]); },
      [&](int64_t r) { return *reinterpret_cast<const float*>(row(r) + a.cols); });
}

// Rounds x / scale to an integer from -128 to 127. NaN stays NaN.
float static_integer(float x, float scale) {
  const float steps = x / scale;
  const float bounded = steps < -128.0f ? -128.0f : steps > 127.0f ? 127.0f : steps;
  return (bounded + 12582912.0f) - 12582912.0f;  // ties to even
}

template <typename Weight>
void matmul_tiles(const MatmulArgs& a) {
  for (int64_t o = 0; o < a.outputs; ++o) {
    const uint8_t* panel = a.panels + o / kPanelRows * a.panel_stride;
    for (int64_t r = 0; r < a.rows; ++r) a.y[r * a.y_stride + o] = 0.0f;
    for (int64_t c = 0; c < a.cols; ++c) {
      const float w = rounded_weight<Weight>(panel, a.cols, o % kPanelRows, c);
      for (int64_t r = 0; r < a.rows; ++r) {
        const uint8_t* x = static_cast<const uint8_t*>(a.x) + activation_offset(Activations::kTiles, r, a.x_stride);
        const uint16_t* line = reinterpret_cast<const uint16_t*>(x + c / kTileColumns * kTileBytes);
        a.y[r * a.y_stride + o] += bf16_to_f32(line[c % kTileColumns]) * w;
      }
    }
  }
}

}  // namespace

void quantize_i8(const QuantizeArgs& a) {
  int8_t* q = reinterpret_cast<int8_t*>(a.out);
  float* scales = reinterpret_cast<float*>(a.out + a.cols);
  int32_t* offsets = reinterpret_cast<int32_t*>(a.out + a.cols + a.cols / kBlock * 4);
  bool lost = false;
  for (int64_t b = 0; b < a.cols / kBlock; ++b) {
    float x[kBlock];
    uint32_t peak_bits = 0;  // magnitudes compare like their bits, and a NaN is the largest
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t c = b * kBlock + i;
      x[i] = c < a.valid ? a.x[c] : 0.0f;
      peak_bits = std::max(peak_bits, std::bit_cast<uint32_t>(fabsf(x[i])));
    }
    const float peak = std::bit_cast<float>(peak_bits);
    float scale = peak * (1.0f / 127.0f), inverse = peak > kZeroPeak ? 127.0f / peak : 0.0f;
    if (a.power_of_two) {
      scale = std::bit_cast<float>(power_scale_bits(peak_bits));
      inverse = peak_bits < kLeastLostPeak ? 1.0f / scale : 0.0f;
      lost |= peak_bits >= kLeastLostPeak;
    }
    int32_t sums[2] = {};
    for (int64_t i = 0; i < kBlock; ++i) {
      const float rounded = (x[i] * inverse + 12582912.0f) - 12582912.0f;  // ties to even
      const int32_t v = rounded == rounded ? static_cast<int32_t>(rounded) : 0;
      q[b * kBlock + i] = static_cast<int8_t>(v);
      sums[i / (kBlock / 2)] += v;
    }
    scales[b] = scale;
    offsets[b] = a.halves ? packed_offsets(sums[0], sums[1]) : -a.zero_point * (sums[0] + sums[1]);
  }
  if (lost) scales[0] = std::numeric_limits<float>::quiet_NaN();
}

void quantize_s8(const StaticArgs& a) {
  float scale = a.scale;
  int32_t sum = 0;
  for (int64_t c = 0; c < a.cols; ++c) {
    const float q = c < a.valid ? static_integer(a.x[c], a.scale) : 0.0f;
    if (q != q) scale = q;
    const int32_t integer = q == q ? static_cast<int32_t>(q) : 0;
    reinterpret_cast<int8_t*>(a.out)[c] = static_cast<int8_t>(integer);
    sum += integer;
  }
  memcpy(a.out + a.cols, &scale, 4);
  memcpy(a.out + a.cols + 4, &sum, 4);
}

void round_s8(const float* x, float scale, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_integer(x[i], scale) * scale;
}

void matmul_f32_f32(const MatmulArgs& a) {
  const int64_t cols = a.cols;
  for_each_panel(a, [cols](const uint8_t* x, const uint8_t* panel, float* sums) {
    const float* row = reinterpret_cast<const float*>(x);
    const float* w = reinterpret_cast<const float*>(panel);
    for (int64_t c = 0; c < cols; ++c) {
      for (int64_t o = 0; o < kPanelRows; ++o) sums[o] += row[c] * w[c * kPanelRows + o];
    }
  });
}

void matmul_f32_bf16(const MatmulArgs& a) {
  const int64_t cols = a.cols;
  for_each_panel(a, [cols](const uint8_t* x, const uint8_t* panel, float* sums) {
    const float* row = reinterpret_cast<const float*>(x);
    const uint16_t* w = reinterpret_cast<const uint16_t*>(panel);
    for (int64_t c = 0; c < cols; ++c) {
      const uint16_t* line = w + c / 2 * kPanelRows * 2 + c % 2;
      for (int64_t o = 0; o < kPanelRows; ++o) sums[o] += row[c] * bf16_to_f32(line[o * 2]);
    }
  });
}

void round_bf16(const RoundArgs& a) {
  for (int64_t c = 0; c < a.cols; ++c) {
    uint16_t* line = reinterpret_cast<uint16_t*>(a.out + c / kTileColumns * a.stride);
    line[c % kTileColumns] = c < a.valid ? f32_to_bf16(a.x[c]) : uint16_t{0};
  }
}

void matmul_bf16_bf16(const MatmulArgs& a) {
  const int64_t cols = a.cols;
  for_each_panel(a, [cols](const uint8_t* x, const uint8_t* panel, float* sums) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(x);
    const uint16_t* w = reinterpret_cast<const uint16_t*>(panel);
    for (int64_t c = 0; c < cols; ++c) {
      const uint16_t* line = w + c / 2 * kPanelRows * 2 + c % 2;
      for (int64_t o = 0; o < kPanelRows; ++o) sums[o] += bf16_to_f32(row[c]) * bf16_to_f32(line[o * 2]);
    }
  });
}

void matmul_f32_w4a16(const MatmulArgs& a) {
  const int64_t cols = a.cols;
  for_each_panel(a, [cols](const uint8_t* x, const uint8_t* panel, float* sums) {
    const float* row = reinterpret_cast<const float*>(x);
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t b = c / kBlock;
      const uint8_t* lines = panel + superblock_offset(Format::kW4a16, b / 2) + kScaleBytes + b % 2 * kQ4BlockBytes;
      for (int64_t o = 0; o < kPanelRows; ++o) {
        const int32_t q = stored_weight(Format::kW4a16, lines, o, c % kBlock) - kQ4Zero;
        const float scale = block_scale(Format::kW4a16, panel, o, c / (kBlock / 2)).scale;
        sums[o] += row[c] * (static_cast<float>(q) * scale);
      }
    }
  });
}

void matmul_f32_bf12(const MatmulArgs& a) {
  matmul_bf12(a, [](const uint8_t* x, int64_t c) { return reinterpret_cast<const float*>(x)[c]; });
}
void matmul_bf16_bf12(const MatmulArgs& a) {
  matmul_bf12(a, [](const uint8_t* x, int64_t c) { return bf16_to_f32(reinterpret_cast<const uint16_t*>(x)[c]); });
}

void matmul_i8_q8(const MatmulArgs& a) { matmul_i8<Q8>(a); }
void matmul_i8_q4(const MatmulArgs& a) { matmul_i8<Q4>(a); }
void matmul_tiles_bf16(const MatmulArgs& a) { matmul_tiles<Bf16>(a); }
void matmul_tiles_bf12(const MatmulArgs& a) { matmul_tiles<Bf12>(a); }
void matmul_tiles_q8(const MatmulArgs& a) { matmul_tiles<Q8>(a); }
void matmul_tiles_q4(const MatmulArgs& a) { matmul_tiles<Q4>(a); }
void matmul_i8_q5(const MatmulArgs& a) { matmul_i8_bits<Format::kQ5>(a); }
void matmul_i8_q4k(const MatmulArgs& a) { matmul_i8_bits<Format::kQ4k>(a); }
void matmul_i8_q5k(const MatmulArgs& a) { matmul_i8_bits<Format::kQ5k>(a); }
void matmul_i8_q6k(const MatmulArgs& a) { matmul_i8_bits<Format::kQ6k>(a); }
void matmul_tiles_q5(const MatmulArgs& a) { matmul_tiles<Bits<Format::kQ5>>(a); }
void matmul_tiles_q4k(const MatmulArgs& a) { matmul_tiles<Bits<Format::kQ4k>>(a); }
void matmul_tiles_q5k(const MatmulArgs& a) { matmul_tiles<Bits<Format::kQ5k>>(a); }
void matmul_tiles_q6k(const MatmulArgs& a) { matmul_tiles<Bits<Format::kQ6k>>(a); }
void matmul_f32_r8(const MatmulArgs& a) { matmul_f32_rows<Format::kR8>(a); }
void matmul_f32_r4(const MatmulArgs& a) { matmul_f32_rows<Format::kR4>(a); }
void matmul_f32_r2(const MatmulArgs& a) { matmul_f32_rows<Format::kR2>(a); }
void matmul_s8_r8(const MatmulArgs& a) { matmul_s8_rows<Format::kR8>(a); }
void matmul_s8_r4(const MatmulArgs& a) { matmul_s8_rows<Format::kR4>(a); }
void matmul_s8_r2(const MatmulArgs& a) { matmul_s8_rows<Format::kR2>(a); }
void matmul_s8_tiles_r8(const MatmulArgs& a) { matmul_s8_r8(a); }
void matmul_s8_tiles_r4(const MatmulArgs& a) { matmul_s8_r4(a); }
void matmul_s8_tiles_r2(const MatmulArgs& a) { matmul_s8_r2(a); }

}  // namespace gemlet::kernels::scalar
