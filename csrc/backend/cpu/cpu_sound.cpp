// Operations that only the towers for sound need. The matmuls around these take most of the time.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"

namespace gemlet {
namespace {

constexpr int64_t kLanes = 16;  // independent sums, so that additions overlap
constexpr int64_t kMostKeys = 256;

float dot(const float* a, const float* b, int64_t count) {
  std::array<float, kLanes> sums = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[static_cast<size_t>(lane)] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  for (int64_t step = kLanes / 2; step > 0; step /= 2) {
    for (int64_t lane = 0; lane < step; ++lane) {
      sums[static_cast<size_t>(lane)] += sums[static_cast<size_t>(lane + step)];
    }
  }
  return sums[0];
}

void add_floats(const float* x, float factor, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

}  // namespace

void CpuBackend::clamp(const float* x, float low, float high, int64_t count, float* out) {
  for_each_piece(count, [&](int64_t first, int64_t floats) {
    for (int64_t i = first; i < first + floats; ++i) out[i] = std::min(std::max(x[i], low), high);
  });
}

void CpuBackend::add_scaled(const float* x, float factor, int64_t count, float* y) {
  for_each_piece(count, [&](int64_t first, int64_t floats) { add_floats(x + first, factor, floats, y + first); });
}

void CpuBackend::silu(int64_t count, float* x) {
  for_each_piece(count,
                 [&](int64_t first, int64_t floats) { kernels_.sigmoid_mul(x + first, x + first, floats, x + first); });
}

void CpuBackend::sigmoid_mul(const float* x, int64_t rows, int64_t dim, float* out) {
  for_each_row(rows, 2 * dim, [&](int64_t row) {
    const float* const at = x + row * 2 * dim;
    kernels_.sigmoid_mul(at + dim, at, dim, out + row * dim);
  });
}

void CpuBackend::unfold(const Convolution& c, const float* x, int64_t first_row, int64_t rows, float* out) {
  const int64_t taps = c.kernel * c.kernel;
  for_each_row(rows * c.out_cols(), c.channels * taps, [&](int64_t index) {
    const int64_t top = (first_row + index / c.out_cols()) * c.stride - c.top;
    const int64_t left = index % c.out_cols() * c.stride - c.left;
    float* const to = out + index * c.channels * taps;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t row = top + tap / c.kernel, col = left + tap % c.kernel;
      if (row < 0 || row >= c.rows || col < 0 || col >= c.cols) {
        for (int64_t i = 0; i < c.channels; ++i) to[i * taps + tap] = 0.0f;
      } else {
        const float* const from = x + (row * c.cols + col) * c.channels;
        for (int64_t i = 0; i < c.channels; ++i) to[i * taps + tap] = from[i];
      }
    }
  });
}

void CpuBackend::norm_relu(const float* weight, float eps, int64_t cells, int64_t channels, float* x) {
  for_each_row(cells, channels, [&](int64_t cell) {
    float* const at = x + cell * channels;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < channels; ++i) sum += static_cast<double>(at[i]);
    const double mean = sum / static_cast<double>(channels);
    for (int64_t i = 0; i < channels; ++i) {
      const double centred = static_cast<double>(at[i]) - mean;
      squares += centred * centred;
    }
    const auto inverse = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(channels) + eps));
    const auto centre = static_cast<float>(mean);
    for (int64_t i = 0; i < channels; ++i) at[i] = std::max((at[i] - centre) * inverse * weight[i], 0.0f);
  });
}

void CpuBackend::cumulative_norm_relu(const float* weight, float eps, int64_t frames, int64_t cells, int64_t channels,
                                      float* x) {
  const int64_t size = cells * channels;
  std::vector<double> sums(static_cast<size_t>(frames)), squares(sums), means(sums), inverses(sums);
  for_each_row(frames, size, [&](int64_t t) {
    double sum = 0;
    for (int64_t i = t * size; i < (t + 1) * size; ++i) sum += static_cast<double>(x[i]);
    sums[static_cast<size_t>(t)] = sum;
  });
  double total = 0;
  for (size_t t = 0; t < sums.size(); ++t) {
    total += sums[t];
    means[t] = total / (static_cast<double>(size) * static_cast<double>(t + 1));
  }
  for_each_row(frames, size, [&](int64_t t) {
    const double mean = means[static_cast<size_t>(t)];
    double sum = 0;
    for (int64_t i = t * size; i < (t + 1) * size; ++i) {
      const double centred = static_cast<double>(x[i]) - mean;
      sum += centred * centred;
    }
    squares[static_cast<size_t>(t)] = sum;
  });
  total = 0;
  for (size_t t = 0; t < sums.size(); ++t) {
    total += squares[t];
    inverses[t] = 1.0 / std::sqrt(total / (static_cast<double>(size) * static_cast<double>(t + 1)) + eps);
  }
  for_each_row(frames, size, [&](int64_t t) {
    const auto centre = static_cast<float>(means[static_cast<size_t>(t)]);
    const auto inverse = static_cast<float>(inverses[static_cast<size_t>(t)]);
    for (int64_t cell = 0; cell < cells; ++cell) {
      float* const at = x + t * size + cell * channels;
      for (int64_t i = 0; i < channels; ++i) at[i] = std::max((at[i] - centre) * inverse * weight[i], 0.0f);
    }
  });
}

void CpuBackend::causal_convolution(const float* x, const float* weight, int64_t taps, int64_t rows, int64_t dim,
                                    float* out) {
  for_each_row(rows, dim, [&](int64_t row) {
    float* const to = out + row * dim;
    std::fill_n(to, dim, 0.0f);
    for (int64_t tap = std::max<int64_t>(0, taps - 1 - row); tap < taps; ++tap) {
      const float* const from = x + (row - taps + 1 + tap) * dim;
      const float* const factors = weight + tap * dim;
      for (int64_t i = 0; i < dim; ++i) to[i] += factors[i] * from[i];
    }
  });
}

void CpuBackend::local_attention(const LocalAttention& shape, const float* q, const float* k, const float* v,
                                 const float* relative, int64_t rows, float* out) {
  const int64_t dim = shape.num_heads * shape.head_dim;
  for_each_row(rows, dim * shape.keys, [&](int64_t row) {
    std::array<float, kMostKeys> scores;
    const int64_t first = std::max<int64_t>(0, row - shape.keys + 1);
    const auto keys = static_cast<size_t>(row - first + 1);
    for (int64_t head = 0; head < shape.num_heads; ++head) {
      const int64_t lane = head * shape.head_dim;
      const float* const query = q + row * dim + lane;
      for (size_t i = 0; i < keys; ++i) {
        const int64_t key = first + static_cast<int64_t>(i);
        scores[i] = dot(query, k + key * dim + lane, shape.head_dim) +
                    dot(query, relative + (row - key) * dim + lane, shape.head_dim);
      }
      kernels_.softcap(shape.softcap, static_cast<int64_t>(keys), scores.data());
      const float largest = *std::max_element(scores.begin(), scores.begin() + keys);
      float sum = 0;
      for (size_t i = 0; i < keys; ++i) sum += scores[i] = std::exp(scores[i] - largest);
      float* const to = out + row * dim + lane;
      std::fill_n(to, shape.head_dim, 0.0f);
      for (size_t i = 0; i < keys; ++i) {
        add_floats(v + (first + static_cast<int64_t>(i)) * dim + lane, scores[i] / sum, shape.head_dim, to);
      }
    }
  });
}

}  // namespace gemlet
