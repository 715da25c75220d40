// Operations that only the towers for images and sound need.
#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/sums.h"

namespace gemlet {
namespace {

constexpr int64_t kOnes = 4096;

// A row of ones: the kernel computes gelu(x) * 1.
const float* ones() {
  static const std::vector<float> row(kOnes, 1.0f);
  return row.data();
}

constexpr int64_t kTogether = 32;  // channels whose sums are in registers

void add_products(const float* a, const float* b, int64_t count, std::array<float, kTogether>& sums) {
  if (count == kTogether) {
    for (size_t i = 0; i < kTogether; ++i) sums[i] += a[i] * b[i];
  } else {
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) sums[i] += a[i] * b[i];
  }
}

void add_floats(const float* bias, int64_t dim, float* x) {
  for (int64_t i = 0; i < dim; ++i) x[i] += bias[i];
}

}  // namespace

void CpuBackend::layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows,
                            int64_t dim, float* out) {
  for_each_row(rows, dim, [&](int64_t row) {
    const float* const from = x + row * dim;
    float* const to = out + row * dim;
    const double count = static_cast<double>(dim);
    const double mean = sum_of(from, dim, [](double value) { return value; }) / count;
    const double variance = sum_of(from, dim, [&](double value) { return (value - mean) * (value - mean); }) / count;
    const auto center = static_cast<float>(mean);
    const auto inverse = static_cast<float>(1.0 / std::sqrt(variance + eps));
    for (int64_t i = 0; i < dim; ++i) to[i] = (from[i] - center) * inverse * weight[i];
    if (bias) add_floats(bias, dim, to);
  });
}

void CpuBackend::add_bias(const float* bias, int64_t rows, int64_t dim, float* x) {
  for_each_row(rows, dim, [&](int64_t row) { add_floats(bias, dim, x + row * dim); });
}

void CpuBackend::bias_gelu(const float* bias, int64_t rows, int64_t dim, float* x) {
  for_each_row(rows, dim, [&](int64_t row) {
    float* const values = x + row * dim;
    if (bias) add_floats(bias, dim, values);
    for (int64_t i = 0; i < dim; i += kOnes) {
      kernels_.gelu_mul(values + i, ones(), std::min(kOnes, dim - i), values + i);
    }
  });
}

void CpuBackend::mean_pool(const float* x, int64_t rows, int64_t cols, int64_t dim, int64_t k, float* out) {
  const int64_t out_cols = cols / k;
  const float share = 1.0f / static_cast<float>(k * k);
  for_each_row(rows / k * out_cols, k * k * dim, [&](int64_t cell) {
    const int64_t top = cell / out_cols * k, left = cell % out_cols * k;
    float* const to = out + cell * dim;
    std::fill_n(to, dim, 0.0f);
    for (int64_t r = top; r < top + k; ++r) {
      for (int64_t c = left; c < left + k; ++c) add_floats(x + (r * cols + c) * dim, dim, to);
    }
    for (int64_t i = 0; i < dim; ++i) to[i] *= share;
  });
}

void CpuBackend::depthwise(const Convolution& c, const float* x, const float* weight, int64_t first_row, int64_t rows,
                           float* out) {
  for_each_row(rows * c.out_cols(), c.channels * c.kernel, [&](int64_t index) {
    const int64_t top = (first_row + index / c.out_cols()) * c.stride - c.top;
    const int64_t left = index % c.out_cols() * c.stride - c.left;
    const int64_t row_end = std::min(c.kernel, c.rows - top), col_end = std::min(c.kernel, c.cols - left);
    for (int64_t channel = 0; channel < c.channels; channel += kTogether) {
      const int64_t count = std::min(kTogether, c.channels - channel);
      std::array<float, kTogether> sums = {};
      for (int64_t row = std::max<int64_t>(0, -top); row < row_end; ++row) {
        for (int64_t col = std::max<int64_t>(0, -left); col < col_end; ++col) {
          const float* const from = x + ((top + row) * c.cols + left + col) * c.channels + channel;
          add_products(from, weight + (row * c.kernel + col) * c.channels + channel, count, sums);
        }
      }
      std::copy_n(sums.begin(), count, out + index * c.channels + channel);
    }
  });
}

}  // namespace gemlet
