#include "formats/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/float_bits.h"

namespace gemlet {
namespace {

// Adding 1.5 * 2^23 rounds to the nearest integer (ties to even) in the current mode; far cheaper than lrintf on plain
// SSE2.
inline float round_even(float x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

// Where quantize_block_q4 tries to put the value of largest magnitude: at -8 as Q4_0 does, or a little beyond the
// range, which costs that value and gives the others a finer grid.
constexpr float kQ4Steps[] = {-8.0f, -9.0f, 7.4f};

constexpr float kLargestF16 = 65504.0f;

inline float to_f16_and_back(float x) { return f16_to_f32(f32_to_f16(x)); }

void quantize_with(const float* x, float scale, float low, float high, int8_t* q) {
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < kBlock; ++i) {
    q[i] = static_cast<int8_t>(std::clamp(round_even(std::clamp(x[i] * inverse, -1024.0f, 1024.0f)), low, high));
  }
}

bool all_finite(const float* x, int64_t count) {
  // x - x is 0 for finite values and NaN otherwise; the sum keeps any NaN.
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += x[i] - x[i];
  return sum == 0.0f;
}

bool pack_block(Format format, const float* x, int r, int block, uint8_t* superblock) {
  int8_t q[kBlock];
  const float scale = format == Format::kQ8 ? quantize_block_q8(x, q) : quantize_block_q4(x, q);
  if (!std::isfinite(scale)) return false;
  const uint16_t bits = f32_to_f16(scale);
  std::memcpy(superblock + (block * kPanelRows + r) * 2, &bits, 2);
  if (format == Format::kQ8) {
    uint8_t* lines = superblock + kScaleBytes + block * kPanelRows * kBlock;
    for (int c = 0; c < kBlock; ++c) lines[c / 4 * 64 + r * 4 + c % 4] = static_cast<uint8_t>(q[c] + 128);
  } else {
    uint8_t* lines = superblock + kScaleBytes + block * kPanelRows * kBlock / 2;
    for (int c = 0; c < kBlock / 2; ++c) {
      const int low = q[c] + 8, high = q[c + 16] + 8;
      lines[c / 4 * 64 + r * 4 + c % 4] = static_cast<uint8_t>(low | (high << 4));
    }
  }
  return true;
}

}  // namespace

float quantize_block_q8(const float* x, int8_t* q) {
  float peak = 0.0f;
  for (int i = 0; i < kBlock; ++i) peak = std::max(peak, std::fabs(x[i]));
  const float scale = to_f16_and_back(peak / 127.0f);
  quantize_with(x, scale, -127.0f, 127.0f, q);
  return scale;
}

float quantize_block_q4(const float* x, int8_t* q) {
  float peak = 0.0f;  // with its sign
  for (int i = 0; i < kBlock; ++i) {
    if (std::fabs(x[i]) > std::fabs(peak)) peak = x[i];
  }
  float best_scale = peak / -8.0f, best_gain = 0.0f;
  for (const float steps : kQ4Steps) {
    quantize_with(x, peak / steps, -8.0f, 7.0f, q);
    float xq = 0.0f, qq = 0.0f;
    for (int i = 0; i < kBlock; ++i) {
      xq += x[i] * static_cast<float>(q[i]);
      qq += static_cast<float>(q[i] * q[i]);
    }
    // With the fitted scale xq / qq the squared error is sum(x x) - xq xq / qq.
    const float fitted = qq > 0.0f ? xq / qq : 0.0f;
    if (xq * fitted > best_gain && std::fabs(fitted) <= kLargestF16) {
      best_gain = xq * fitted;
      best_scale = fitted;
    }
  }
  const float scale = to_f16_and_back(best_scale);
  quantize_with(x, scale, -8.0f, 7.0f, q);
  return scale;
}

bool pack_panel(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel) {
  std::memset(panel, 0, static_cast<size_t>(panel_bytes(format, cols)));
  if (!all_finite(rows, row_count * cols)) return false;
  switch (format) {
    case Format::kF32: {
      float* out = reinterpret_cast<float*>(panel);
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t c = 0; c < cols; ++c) out[c * kPanelRows + r] = rows[r * cols + c];
      }
      return true;
    }
    case Format::kBf16: {
      uint16_t* out = reinterpret_cast<uint16_t*>(panel);
      bool finite = true;
      for (int64_t r = 0; r < row_count; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const uint16_t bits = f32_to_bf16(rows[r * cols + c]);
          finite &= (bits & 0x7f80u) != 0x7f80u;  // a float just below FLT_MAX rounds up to infinity
          out[(c / 2 * kPanelRows + r) * 2 + c % 2] = bits;
        }
      }
      return finite;
    }
    case Format::kQ8:
    case Format::kQ4: {
      const int64_t bytes = format == Format::kQ8 ? kQ8SuperblockBytes : kQ4SuperblockBytes;
      const int64_t padded = padded_cols(format, cols);
      for (int64_t r = 0; r < kPanelRows; ++r) {
        for (int64_t c = 0; c < padded; c += kBlock) {
          float x[kBlock] = {};
          if (r < row_count && c < cols) {
            std::copy_n(rows + r * cols + c, std::min<int64_t>(kBlock, cols - c), x);
          }
          if (!pack_block(format, x, static_cast<int>(r), static_cast<int>(c / kBlock % 2),
                          panel + c / kSuperblock * bytes)) {
            return false;
          }
        }
      }
      return true;
    }
  }
  return false;
}

void unpack_row(const Matrix& matrix, int64_t row, float* out) {
  const uint8_t* panel = matrix.panel(row / kPanelRows);
  const int64_t r = row % kPanelRows;
  switch (matrix.format) {
    case Format::kF32:
      for (int64_t c = 0; c < matrix.cols; ++c) out[c] = reinterpret_cast<const float*>(panel)[c * kPanelRows + r];
      return;
    case Format::kBf16:
      for (int64_t c = 0; c < matrix.cols; ++c) {
        out[c] = bf16_to_f32(reinterpret_cast<const uint16_t*>(panel)[(c / 2 * kPanelRows + r) * 2 + c % 2]);
      }
      return;
    case Format::kQ8:
    case Format::kQ4:
      break;
  }
  const bool q8 = matrix.format == Format::kQ8;
  for (int64_t c = 0; c < matrix.cols; ++c) {
    const uint8_t* superblock = panel + c / kSuperblock * (q8 ? kQ8SuperblockBytes : kQ4SuperblockBytes);
    const int64_t block = c / kBlock % 2, i = c % kBlock;
    uint16_t bits;
    std::memcpy(&bits, superblock + (block * kPanelRows + r) * 2, 2);
    int q;
    if (q8) {
      q = superblock[kScaleBytes + block * kPanelRows * kBlock + i / 4 * 64 + r * 4 + i % 4] - 128;
    } else {
      const int64_t j = i % 16;
      const uint8_t byte = superblock[kScaleBytes + block * kPanelRows * kBlock / 2 + j / 4 * 64 + r * 4 + j % 4];
      q = (i < 16 ? byte & 15 : byte >> 4) - 8;
    }
    out[c] = static_cast<float>(q) * f16_to_f32(bits);
  }
}

}  // namespace gemlet
