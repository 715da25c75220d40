// Operations that only the towers for images and sound need (backend.h has the definitions).
#include "kernels/cuda/device.h"

namespace gemlet::cuda {
namespace {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Moments {
  float mean, inverse;  // inverse: 1 / sqrt(variance + eps)
};
__device__ __forceinline__ Moments moments_of(const float* x, int64_t dim, float eps, float* shared) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) sum += x[i];
  const float mean = block_sum(sum, shared) / static_cast<float>(dim);
  float squares = 0;
  for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) squares = fmaf(x[i] - mean, x[i] - mean, squares);
  return {mean, 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(dim) + eps)};
}

}  // namespace

GEMLET_CUDA_KERNEL(layer_norm, LayerNormArgs) {
  GEMLET_SHARED(shared);
  const float* const x = args.x + blockIdx.x * args.dim;
  float* const out = args.out + blockIdx.x * args.dim;
  const Moments moments = moments_of(x, args.dim, args.eps, reinterpret_cast<float*>(shared));
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) {
    const float value = (x[i] - moments.mean) * moments.inverse * args.weight[i];
    out[i] = args.bias ? value + args.bias[i] : value;
  }
}

GEMLET_CUDA_KERNEL(norm_relu, NormArgs) {
  GEMLET_SHARED(shared);
  float* const x = args.out + blockIdx.x * args.dim;
  const Moments moments = moments_of(x, args.dim, args.eps, reinterpret_cast<float*>(shared));
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) {
    x[i] = fmaxf((x[i] - moments.mean) * moments.inverse * args.weight[i], 0.0f);
  }
}

GEMLET_CUDA_KERNEL(add_bias, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] += args.vector[i % args.dim];
}

GEMLET_CUDA_KERNEL(bias_gelu, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] = gelu_tanh(args.vector ? args.out[i] + args.vector[i % args.dim] : args.out[i]);
}

GEMLET_CUDA_KERNEL(mean_pool, PoolArgs) {
  const int64_t i = grid_thread(), cell = blockIdx.y, k = args.cell;
  if (i >= args.dim) return;
  const int64_t row = cell / (args.cols / k) * k, col = cell % (args.cols / k) * k;
  float sum = 0;
  for (int64_t n = 0; n < k * k; ++n) sum += args.x[((row + n / k) * args.cols + col + n % k) * args.dim + i];
  args.out[cell * args.dim + i] = sum / static_cast<float>(k * k);
}

GEMLET_CUDA_KERNEL(clamp, ClampArgs) {
  const int64_t i = grid_thread();
  if (i >= args.count) return;
  const float x = args.x[i] < args.low ? args.low : args.x[i];  // NaN stays NaN
  args.out[i] = x > args.high ? args.high : x;
}

GEMLET_CUDA_KERNEL(add_scaled, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] = fmaf(args.factor, args.x[i], args.out[i]);
}

GEMLET_CUDA_KERNEL(silu, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] *= sigmoid(args.out[i]);
}

GEMLET_CUDA_KERNEL(sigmoid_mul, FactorArgs) {
  const int64_t i = grid_thread();
  if (i >= args.count) return;
  const float* const x = args.x + i / args.dim * 2 * args.dim + i % args.dim;
  args.out[i] = x[0] * sigmoid(x[args.dim]);
}

GEMLET_CUDA_KERNEL(unfold, UnfoldArgs) {
  const int64_t place = blockIdx.x, taps = args.kernel * args.kernel;
  const int64_t top = (args.first_row + place / args.out_cols) * args.stride - args.top;
  const int64_t left = place % args.out_cols * args.stride - args.left;
  float* const out = args.out + place * args.channels * taps;
  for (int64_t i = threadIdx.x; i < args.channels * taps; i += blockDim.x) {
    const int64_t row = top + i % taps / args.kernel, col = left + i % taps % args.kernel;
    const bool inside = row >= 0 && row < args.rows && col >= 0 && col < args.cols;
    out[i] = inside ? args.x[(row * args.cols + col) * args.channels + i / taps] : 0.0f;
  }
}

GEMLET_CUDA_KERNEL(depthwise, UnfoldArgs) {
  const int64_t place = blockIdx.x;
  const int64_t top = (args.first_row + place / args.out_cols) * args.stride - args.top;
  const int64_t left = place % args.out_cols * args.stride - args.left;
  for (int64_t i = threadIdx.x; i < args.channels; i += blockDim.x) {
    float sum = 0;
    for (int64_t tap = 0; tap < args.kernel * args.kernel; ++tap) {
      const int64_t row = top + tap / args.kernel, col = left + tap % args.kernel;
      if (row < 0 || row >= args.rows || col < 0 || col >= args.cols) continue;
      sum += args.x[(row * args.cols + col) * args.channels + i] * args.weight[tap * args.channels + i];
    }
    args.out[place * args.channels + i] = sum;
  }
}

// The sum of a frame's values, or of the squares of their differences from the mean so far. They are in double
// precision because the totals grow with every frame.
GEMLET_CUDA_KERNEL(frame_sums, FrameArgs) {
  GEMLET_SHARED(shared);
  double* const sums = reinterpret_cast<double*>(shared);
  const float* const x = args.x + blockIdx.x * args.size;
  const double mean = args.second ? args.sums[blockIdx.x] : 0;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < args.size; i += blockDim.x) {
    const double value = static_cast<double>(x[i]) - mean;
    sum += args.second ? value * value : value;
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double all = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) all += sums[i];
  (args.second ? args.squares : args.sums)[blockIdx.x] = all;
}

// Runs as one thread. For each frame, computes the mean of all frames up to it, or 1 / their standard deviation.
GEMLET_CUDA_KERNEL(frame_totals, FrameArgs) {
  if (threadIdx.x != 0) return;
  double* const values = args.second ? args.squares : args.sums;
  double total = 0;
  for (int64_t t = 0; t < args.frames; ++t) {
    total += values[t];
    const double mean = total / (static_cast<double>(args.size) * static_cast<double>(t + 1));
    values[t] = args.second ? 1.0 / sqrt(mean + static_cast<double>(args.eps)) : mean;
  }
}

GEMLET_CUDA_KERNEL(frame_norm_relu, FrameArgs) {
  float* const x = args.x + blockIdx.x * args.size;
  const float mean = static_cast<float>(args.sums[blockIdx.x]), inverse = static_cast<float>(args.squares[blockIdx.x]);
  for (int64_t i = threadIdx.x; i < args.size; i += blockDim.x) {
    x[i] = fmaxf((x[i] - mean) * inverse * args.weight[i % args.channels], 0.0f);
  }
}

GEMLET_CUDA_KERNEL(causal_convolution, ConvolutionArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y;
  if (i >= args.dim) return;
  float sum = 0;
  for (int64_t tap = row < args.taps - 1 ? args.taps - 1 - row : 0; tap < args.taps; ++tap) {
    sum = fmaf(args.weight[tap * args.dim + i], args.x[(row - args.taps + 1 + tap) * args.dim + i], sum);
  }
  args.out[row * args.dim + i] = sum;
}

// One block computes one row of one head. Its threads first divide the keys among themselves, then the dimensions of
// the values.
GEMLET_CUDA_KERNEL(local_attention, LocalArgs) {
  GEMLET_SHARED(shared);
  float* const sums = reinterpret_cast<float*>(shared);
  float* const scores = sums + 40;
  const int64_t row = blockIdx.x, dim = args.heads * args.head_dim, lane = blockIdx.y * args.head_dim;
  const int64_t first = row - args.keys + 1 > 0 ? row - args.keys + 1 : 0, keys = row - first + 1;
  const float* const query = args.q + row * dim + lane;
  float largest = -INFINITY;
  for (int64_t i = threadIdx.x; i < keys; i += blockDim.x) {
    const float* const key = args.k + (first + i) * dim + lane;
    const float* const relative = args.relative + (row - first - i) * dim + lane;
    float score = 0;
    for (int64_t d = 0; d < args.head_dim; ++d) score = fmaf(query[d], key[d] + relative[d], score);
    scores[i] = args.softcap * tanhf(score / args.softcap);
    largest = larger(largest, scores[i]);
  }
  largest = block_max(largest, sums);
  float sum = 0;
  for (int64_t i = threadIdx.x; i < keys; i += blockDim.x) {
    scores[i] = expf(scores[i] - largest);
    sum += scores[i];
  }
  sum = block_sum(sum, sums);  // this has a barrier, so all scores are there afterwards
  for (int64_t d = threadIdx.x; d < args.head_dim; d += blockDim.x) {
    float value = 0;
    for (int64_t i = 0; i < keys; ++i) value = fmaf(scores[i], args.v[(first + i) * dim + lane + d], value);
    args.out[row * dim + lane + d] = value / sum;
  }
}

}  // namespace gemlet::cuda
