// Row operations that move rows about or mix a few of them: per-layer inputs, routed experts, the streams of AltUp. All
// are bound by memory and small beside the matmuls, so they are plain loops.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/sums.h"
#include "formats/layout.h"

namespace gemlet {
namespace {

void copy_floats(const float* x, int64_t count, float* out) {
  std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
}

void scale_floats(float factor, int64_t count, float* x) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

double mean_square(const float* x, int64_t dim) {
  return sum_of(x, dim, [](double value) { return value * value; }) / static_cast<double>(dim);
}

// tanh of one token's modalities, as the coefficients' matrix takes them.
std::array<float, kMaxStreams> activate(const float* modalities, float input_scale, int64_t streams) {
  std::array<float, kMaxStreams> m = {};
  for (int64_t j = 0; j < streams; ++j) m[static_cast<size_t>(j)] = std::tanh(modalities[j] * input_scale);
  return m;
}

float dot(const float* coefs, const std::array<float, kMaxStreams>& m, int64_t streams) {
  float sum = 0;
  for (int64_t j = 0; j < streams; ++j) sum += coefs[j] * m[static_cast<size_t>(j)];
  return sum;
}

}  // namespace

void CpuBackend::copy(const float* x, int64_t count, float* out) {
  for_each_piece(count, [&](int64_t first, int64_t floats) { copy_floats(x + first, floats, out + first); });
}

void CpuBackend::copy_bytes(const uint8_t* from, int64_t bytes, uint8_t* to) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
}

void CpuBackend::scale(float factor, int64_t count, float* x) {
  for_each_piece(count, [&](int64_t first, int64_t floats) { scale_floats(factor, floats, x + first); });
}

void CpuBackend::mul_rows(const float* x, const float* weight, int64_t rows, int64_t dim, float* out) {
  for_each_row(rows, dim, [&](int64_t row) {
    for (int64_t i = 0; i < dim; ++i) out[row * dim + i] = x[row * dim + i] * weight[i];
  });
}

void CpuBackend::gaussian_topk(float deviations, int64_t rows, int64_t dim, float* x) {
  for_each_row(rows, dim, [&](int64_t row) {
    float* const at = x + row * dim;
    const double mean = sum_of(at, dim, [](double value) { return value; }) / static_cast<double>(dim);
    const double squares = sum_of(at, dim, [&](double value) { return (value - mean) * (value - mean); });
    const double deviation = std::sqrt(squares / static_cast<double>(dim));  // the divisor is not dim - 1
    const float cutoff = static_cast<float>(mean + static_cast<double>(deviations) * deviation);
    for (int64_t i = 0; i < dim; ++i) at[i] = at[i] > cutoff ? at[i] - cutoff : 0.0f;
  });
}

void CpuBackend::matmul_where(const Product& product, const float* gate) {
  const Matrix& weight = *product.weight;
  const auto is_open = [&](int64_t panel) {
    const float* const end = gate + std::min(weight.rows, (panel + 1) * kPanelRows);
    return std::any_of(gate + panel * kPanelRows, end, [](float value) { return value != 0.0f; });
  };
  std::fill_n(product.y, weight.rows, 0.0f);
  std::vector<Matrix> runs;  // runs of open panels
  for (int64_t first = 0, last = 0; first < weight.panels(); first = last + 1) {
    for (last = first; last < weight.panels() && is_open(last);) ++last;
    if (last == first) continue;
    const int64_t rows = std::min(weight.rows, last * kPanelRows) - first * kPanelRows;
    runs.push_back(weight.part(first * kPanelRows, rows));
  }
  std::vector<Product> products;
  for (const Matrix& run : runs) {
    const int64_t first = (run.data - weight.data) / panel_bytes(weight.format, weight.cols) * kPanelRows;
    products.push_back({product.x, 1, &run, product.y + first});
  }
  if (!products.empty()) matmul(products);
}

void CpuBackend::gather(const float* x, std::span<const int32_t> rows, int64_t dim, float* out) {
  for_each_row(static_cast<int64_t>(rows.size()), dim,
               [&](int64_t i) { copy_floats(x + rows[static_cast<size_t>(i)] * dim, dim, out + i * dim); });
}

void CpuBackend::combine(const float* x, std::span<const int32_t> places, std::span<const float> weights,
                         int64_t per_row, int64_t dim, float* out) {
  const int64_t rows = static_cast<int64_t>(places.size()) / per_row;
  for_each_row(rows, dim * per_row, [&](int64_t row) {
    float* const to = out + row * dim;
    std::fill_n(to, dim, 0.0f);
    for (int64_t j = row * per_row; j < (row + 1) * per_row; ++j) {
      const float* from = x + places[static_cast<size_t>(j)] * dim;
      const float weight = weights[static_cast<size_t>(j)];
      for (int64_t i = 0; i < dim; ++i) to[i] += weight * from[i];
    }
  });
}

void CpuBackend::add_table_rows(const RowTable& table, std::span<const int32_t> ids, float table_scale, float out_scale,
                                float* x) {
  const int64_t cols = table.cols();
  std::exception_ptr problem;  // reading a file can fail, and a task must not throw
  std::mutex mutex;
  for_each_row(static_cast<int64_t>(ids.size()), cols, [&](int64_t row) {
    try {
      std::vector<float> values(static_cast<size_t>(cols));
      const int32_t id = ids[static_cast<size_t>(row)];
      table.read(id < table.rows() ? id : 0, values.data());
      float* const at = x + row * cols;
      for (int64_t i = 0; i < cols; ++i) at[i] = (at[i] + table_scale * values[static_cast<size_t>(i)]) * out_scale;
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      problem = std::current_exception();
    }
  });
  if (problem) std::rethrow_exception(problem);
}

void CpuBackend::route(const float* logits, const float* scale, int64_t rows, int64_t experts, int64_t count,
                       int32_t* ids, float* weights) {
  std::vector<int32_t> order(static_cast<size_t>(experts));
  for (int64_t row = 0; row < rows; ++row) {
    const float* at = logits + row * experts;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + count, order.end(),
                      [&](int32_t a, int32_t b) { return at[a] > at[b] || (at[a] == at[b] && a < b); });
    // The softmax's own denominator cancels in the renormalisation.
    const auto weight_of = [&](int32_t id) {
      return std::exp(static_cast<double>(at[id]) - static_cast<double>(at[order[0]]));
    };
    double sum = 0;
    for (int64_t j = 0; j < count; ++j) sum += weight_of(order[static_cast<size_t>(j)]);
    for (int64_t j = 0; j < count; ++j) {
      const int32_t id = order[static_cast<size_t>(j)];
      ids[row * count + j] = id;
      weights[row * count + j] = static_cast<float>(weight_of(id) / sum) * scale[id];
    }
  }
}

void CpuBackend::altup_predict(const float* x, const float* modalities, float input_scale,
                               std::span<const float* const> coefs, int64_t streams, int64_t dim, float* out) {
  const auto rows = static_cast<int64_t>(coefs.size());
  for_each_row(rows, streams * dim, [&](int64_t row) {
    const auto m = activate(modalities + row * streams, input_scale, streams);
    for (int64_t k = 0; k < streams; ++k) {
      float* const to = out + (k * rows + row) * dim;
      copy_floats(x + (k * rows + row) * dim, dim, to);
      for (int64_t j = 0; j < streams; ++j) {
        const float c = dot(coefs[static_cast<size_t>(row)] + (k * streams + j) * streams, m, streams);
        const float* from = x + (j * rows + row) * dim;
        for (int64_t i = 0; i < dim; ++i) to[i] += c * from[i];
      }
    }
  });
}

void CpuBackend::altup_correct(const float* predicted, const float* activated, const float* modalities,
                               float input_scale, std::span<const float* const> coefs, int64_t streams, int64_t dim,
                               float* out) {
  const auto rows = static_cast<int64_t>(coefs.size());
  for_each_row(rows, streams * dim, [&](int64_t row) {
    const auto m = activate(modalities + row * streams, input_scale, streams);
    const float* z = activated + row * dim;
    const float* active = predicted + row * dim;
    for (int64_t k = 0; k < streams; ++k) {
      const float c = dot(coefs[static_cast<size_t>(row)] + k * streams, m, streams) + 1.0f;
      const float* from = predicted + (k * rows + row) * dim;
      float* const to = out + (k * rows + row) * dim;
      for (int64_t i = 0; i < dim; ++i) to[i] = from[i] + c * (z[i] - active[i]);
    }
  });
}

void CpuBackend::match_magnitude(const float* target, int64_t rows, int64_t dim, float* x) {
  for_each_row(rows, dim, [&](int64_t row) {
    const double wanted = mean_square(target + row * dim, dim);
    const double have = std::max(mean_square(x + row * dim, dim), 1e-5);
    scale_floats(static_cast<float>(std::sqrt(wanted / have)), dim, x + row * dim);
  });
}

}  // namespace gemlet
