// What only towers for images and sound need.
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"

namespace gemlet {
namespace {

constexpr int64_t kOnes = 4096;

// A row of ones, which makes gelu(x) of gelu(x) * 1.
const float* ones() {
  static const std::vector<float> row(kOnes, 1.0f);
  return row.data();
}

// The sum of term(x[i]) in double precision, in chains that do not wait for each other.
template <typename Term>
double sum_of(const float* x, int64_t dim, const Term& term) {
  constexpr int64_t kChains = 8;
  double chains[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= dim; i += kChains) {
    for (int64_t c = 0; c < kChains; ++c) chains[c] += term(static_cast<double>(x[i + c]));
  }
  for (; i < dim; ++i) chains[0] += term(static_cast<double>(x[i]));
  double sum = 0;
  for (const double chain : chains) sum += chain;
  return sum;
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

}  // namespace gemlet
