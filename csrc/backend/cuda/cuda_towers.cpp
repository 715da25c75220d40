// Operations that only the towers for images and sound need.
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/launch_sizes.h"

namespace gemlet::cuda {

void CudaBackend::layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows,
                             int64_t dim, float* out) {
  const LayerNormArgs args = {x, weight, bias, eps, dim, out};
  for_each_row(Kernel::layer_norm, rows, &args);
}

void CudaBackend::norm_relu(const float* weight, float eps, int64_t cells, int64_t channels, float* x) {
  const NormArgs args = {x, weight, eps, channels, x};
  for_each_row(Kernel::norm_relu, cells, &args);
}

void CudaBackend::add_bias(const float* bias, int64_t rows, int64_t dim, float* x) {
  const FactorArgs args = {x, bias, 1, rows * dim, dim, x};
  for_each_number(Kernel::add_bias, rows * dim, 1, &args);
}

void CudaBackend::bias_gelu(const float* bias, int64_t rows, int64_t dim, float* x) {
  const FactorArgs args = {x, bias, 1, rows * dim, dim, x};
  for_each_number(Kernel::bias_gelu, rows * dim, 1, &args);
}

void CudaBackend::mean_pool(const float* x, int64_t rows, int64_t cols, int64_t dim, int64_t k, float* out) {
  const PoolArgs args = {x, cols, dim, k, out};
  for_each_number(Kernel::mean_pool, dim, rows / k * (cols / k), &args);
}

void CudaBackend::clamp(const float* x, float low, float high, int64_t count, float* out) {
  const ClampArgs args = {x, low, high, count, out};
  for_each_number(Kernel::clamp, count, 1, &args);
}

void CudaBackend::add_scaled(const float* x, float factor, int64_t count, float* y) {
  const FactorArgs args = {x, nullptr, factor, count, count, y};
  for_each_number(Kernel::add_scaled, count, 1, &args);
}

void CudaBackend::silu(int64_t count, float* x) {
  const FactorArgs args = {x, nullptr, 1, count, count, x};
  for_each_number(Kernel::silu, count, 1, &args);
}

void CudaBackend::sigmoid_mul(const float* x, int64_t rows, int64_t dim, float* out) {
  const FactorArgs args = {x, nullptr, 1, rows * dim, dim, out};
  for_each_number(Kernel::sigmoid_mul, rows * dim, 1, &args);
}

void CudaBackend::unfold(const Convolution& c, const float* x, int64_t first_row, int64_t rows, float* out) {
  const UnfoldArgs args = {x,        nullptr, c.rows, c.cols,       c.channels, c.kernel,
                           c.stride, c.top,   c.left, c.out_cols(), first_row,  out};
  for_each_row(Kernel::unfold, rows * c.out_cols(), &args);
}

void CudaBackend::depthwise(const Convolution& c, const float* x, const float* weight, int64_t first_row, int64_t rows,
                            float* out) {
  const UnfoldArgs args = {x,        weight, c.rows, c.cols,       c.channels, c.kernel,
                           c.stride, c.top,  c.left, c.out_cols(), first_row,  out};
  for_each_row(Kernel::depthwise, rows * c.out_cols(), &args);
}

void CudaBackend::cumulative_norm_relu(const float* weight, float eps, int64_t frames, int64_t cells, int64_t channels,
                                       float* x) {
  double* const sums =
      reinterpret_cast<double*>(scratch(frame_sums_, static_cast<size_t>(frames) * 2 * sizeof(double)));
  FrameArgs args = {x, weight, sums, sums + frames, eps, frames, cells * channels, channels, 0};
  for (const int32_t second : {0, 1}) {
    args.second = second;
    launch(Kernel::frame_sums, {frames}, kThreads, kThreads * 8, &args);
    launch(Kernel::frame_totals, {1}, 32, 0, &args);
  }
  for_each_row(Kernel::frame_norm_relu, frames, &args);
}

void CudaBackend::causal_convolution(const float* x, const float* weight, int64_t taps, int64_t rows, int64_t dim,
                                     float* out) {
  const ConvolutionArgs args = {x, weight, taps, dim, out};
  for_each_number(Kernel::causal_convolution, dim, rows, &args);
}

void CudaBackend::local_attention(const LocalAttention& shape, const float* q, const float* k, const float* v,
                                  const float* relative, int64_t rows, float* out) {
  const LocalArgs args = {q, k, v, relative, shape.num_heads, shape.head_dim, shape.keys, shape.softcap, out};
  launch(Kernel::local_attention, {rows, shape.num_heads}, 64, (40 + shape.keys) * 4, &args);
}

}  // namespace gemlet::cuda
