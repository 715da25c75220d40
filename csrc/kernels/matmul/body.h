// The vector body of the matmul kernels, compiled once per tier. Panel by panel, and inside a panel kRowTile rows at a
// time: the panel (10 to 60 KB quantized) stays in L1/L2 while the rows pass by. Decode (one row) streams the panels
// once.
#pragma once

#include "kernels/matmul/matmul.h"
#include "kernels/simd/vector.h"
//
#include "kernels/simd/tile.h"

namespace gemlet::kernels {
namespace {

constexpr int64_t kQuantBlock = 32;
constexpr int64_t kScaleLine = 64;

template <int R, int H>
inline void store_tile(const MatmulArgs& a, int64_t row, int64_t panel, int h0, const VF (&sums)[R][H]) {
  for (int h = 0; h < H; ++h) {
    const int64_t first = panel * 16 + (h0 + h) * kLanes;
    const int64_t left = a.outputs - first;
    for (int r = 0; r < R; ++r) {
      float* y = a.y + (row + r) * a.y_stride + first;
      if (left >= kLanes) {
        store(y, sums[r][h]);
      } else if (left > 0) {
        store_some(y, sums[r][h], left);
      }
    }
  }
}

template <typename Lines>
struct FloatProduct {
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const float* x[R];
    for (int r = 0; r < R; ++r) x[r] = (const float*)((const uint8_t*)a.x + (row + r) * a.x_stride);
    Lines::template tile<R, H>(x, panel, h0, a.cols, sums);
  }
};

inline VI splat_bytes(const uint8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return splat_i32(four);
}

struct Q8Lines {
  static constexpr int64_t kBlockBytes = 512;
  static constexpr bool kNeedsOffset = kQ8NeedsOffset;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    for (int j = 0; j < 8; ++j) {
      for (int h = 0; h < H; ++h) {
        const VI w = load_i32(lines + j * 64 + h * kLanes * 4);
        for (int r = 0; r < R; ++r) dots[r][h] = dot_q8(dots[r][h], w, splat_bytes(x[r] + 4 * j));
      }
    }
  }
};
struct Q4Lines {
  static constexpr int64_t kBlockBytes = 256;
  static constexpr bool kNeedsOffset = true;
  template <int R, int H>
  static void dot(const uint8_t* lines, const uint8_t* const* x, VI (&dots)[R][H]) {
    for (int j = 0; j < 4; ++j) {
      for (int h = 0; h < H; ++h) {
        const VI w = load_i32(lines + j * 64 + h * kLanes * 4);
        const VI low = w & 0x0f0f0f0f, high = (w >> 4) & 0x0f0f0f0f;
        for (int r = 0; r < R; ++r) dots[r][h] = dot_q4(dots[r][h], low, splat_bytes(x[r] + 4 * j));
        for (int r = 0; r < R; ++r) dots[r][h] = dot_q4(dots[r][h], high, splat_bytes(x[r] + 16 + 4 * j));
      }
    }
  }
};

template <typename Lines>
struct Int8Product {
  template <int R, int H>
  static void tile(const MatmulArgs& a, int64_t row, const uint8_t* panel, int h0, VF (&sums)[R][H]) {
    const uint8_t* x[R];
    const float* scales[R];
    const int32_t* offsets[R];
    for (int r = 0; r < R; ++r) {
      x[r] = (const uint8_t*)a.x + (row + r) * a.x_stride;
      scales[r] = (const float*)(x[r] + a.cols);
      offsets[r] = (const int32_t*)(x[r] + a.cols + a.cols / kQuantBlock * 4);
    }
    const int64_t blocks = a.cols / kQuantBlock;
    for (int64_t b = 0; b < blocks; b += 2, panel += kScaleLine + 2 * Lines::kBlockBytes) {
      for (int64_t half = 0; half < 2; ++half) {
        VI dots[R][H];
        for (int r = 0; r < R; ++r) {
          for (int h = 0; h < H; ++h) dots[r][h] = Lines::kNeedsOffset ? splat_i32(offsets[r][b + half]) : VI{};
        }
        Lines::template dot<R, H>(panel + kScaleLine + half * Lines::kBlockBytes + h0 * kLanes * 4, x, dots);
        for (int h = 0; h < H; ++h) {
          const VF weight_scale = load_f16(panel + half * 32 + (h0 + h) * kLanes * 2);
          for (int r = 0; r < R; ++r) {
            sums[r][h] += to_float(dots[r][h]) * (weight_scale * scales[r][b + half]);
          }
        }
        for (int r = 0; r < R; ++r) x[r] += kQuantBlock;
      }
    }
  }
};

template <typename Product, int R>
inline void panel_rows(const MatmulArgs& a, int64_t row, int64_t panel) {
  constexpr int H = vectors_at_once(R);
  for (int h0 = 0; h0 < kPanelVectors; h0 += H) {
    VF sums[R][H] = {};
    Product::template tile<R, H>(a, row, a.panels + panel * a.panel_stride, h0, sums);
    store_tile<R, H>(a, row, panel, h0, sums);
  }
}

// The last rows of a panel: `rows` is between 1 and R.
template <typename Product, int R>
inline void last_rows(const MatmulArgs& a, int64_t row, int64_t panel, int64_t rows) {
  if (rows == R) {
    panel_rows<Product, R>(a, row, panel);
  } else if constexpr (R > 1) {
    last_rows<Product, R - 1>(a, row, panel, rows);
  }
}

template <typename Product>
inline void matmul(const MatmulArgs& a) {
  const int64_t panels = (a.outputs + 15) / 16;
  for (int64_t panel = 0; panel < panels; ++panel) {
    int64_t row = 0;
    for (; row + kRowTile <= a.rows; row += kRowTile) panel_rows<Product, kRowTile>(a, row, panel);
    if (row < a.rows) last_rows<Product, kRowTile>(a, row, panel, a.rows - row);
  }
}

}  // namespace

namespace GEMLET_TIER {

void quantize_i8(const QuantizeArgs& a) {
  int8_t* q = (int8_t*)a.out;
  float* scales = (float*)(a.out + a.cols);
  int32_t* offsets = (int32_t*)(a.out + a.cols + a.cols / kQuantBlock * 4);
  constexpr int kVectors = kQuantBlock / kLanes;
  for (int64_t b = 0; b < a.cols / kQuantBlock; ++b) {
    VF x[kVectors];
    VI peaks = {};  // magnitudes compare as their bits do, and NaN is above all
    for (int v = 0; v < kVectors; ++v) {
      const int64_t c = b * kQuantBlock + v * kLanes;
      const int64_t left = a.valid - c;
      x[v] = left >= kLanes ? load(a.x + c) : left > 0 ? load_some(a.x + c, left) : splat(0.0f);
      const VI bits = (VI)abs(x[v]);
      peaks = bits > peaks ? bits : peaks;
    }
    int32_t peak_bits = 0;
    for (int i = 0; i < kLanes; ++i) peak_bits = peaks[i] > peak_bits ? peaks[i] : peak_bits;
    float peak;
    __builtin_memcpy(&peak, &peak_bits, sizeof peak);
    const float inverse = peak > kZeroPeak ? 127.0f / peak : 0.0f;
    VI sum = {};
    for (int v = 0; v < kVectors; ++v) {
      const VF rounded = (x[v] * inverse + 12582912.0f) - 12582912.0f;
      const VI integer = __builtin_convertvector(select(rounded == rounded, rounded, splat(0.0f)), VI);
      sum += integer;
      typedef int8_t Bytes __attribute__((vector_size(kLanes)));
      const Bytes bytes = __builtin_convertvector(integer, Bytes);
      __builtin_memcpy(q + b * kQuantBlock + v * kLanes, &bytes, sizeof bytes);
    }
    int32_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += sum[i];
    scales[b] = peak * (1.0f / 127.0f);
    offsets[b] = -a.zero_point * total;
  }
}

void matmul_f32_f32(const MatmulArgs& a) { matmul<FloatProduct<F32Lines>>(a); }
void matmul_f32_bf16(const MatmulArgs& a) { matmul<FloatProduct<Bf16Lines>>(a); }
void matmul_i8_q8(const MatmulArgs& a) { matmul<Int8Product<Q8Lines>>(a); }
void matmul_i8_q4(const MatmulArgs& a) { matmul<Int8Product<Q4Lines>>(a); }

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
