// Operations on rows: norms, activations, and rows that are looked up or mixed. Memory bandwidth limits the speed of
// all these operations.
#include "kernels/cuda/device.h"
#include "kernels/cuda/weights.h"

namespace gemlet::cuda {
namespace {

// Returns 1 / rms of the row that the block computes.
__device__ __forceinline__ float inverse_rms(const float* x, int64_t dim, float eps, float* shared) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) sum = fmaf(x[i], x[i], sum);
  return 1.0f / sqrtf(block_sum(sum, shared) / static_cast<float>(dim) + eps);
}

}  // namespace

GEMLET_CUDA_KERNEL(rms_norm, NormArgs) {
  GEMLET_SHARED(shared);
  const float* const x = args.x + blockIdx.x * args.dim;
  float* const out = args.out + blockIdx.x * args.dim;
  const float factor = inverse_rms(x, args.dim, args.eps, reinterpret_cast<float*>(shared));
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) {
    const float value = x[i] * factor;
    out[i] = args.weight ? value * args.weight[i] : value;
  }
}

GEMLET_CUDA_KERNEL(rms_norm_add, NormArgs) {
  GEMLET_SHARED(shared);
  const float* const x = args.x + blockIdx.x * args.dim;
  float* const out = args.out + blockIdx.x * args.dim;
  const float factor = inverse_rms(x, args.dim, args.eps, reinterpret_cast<float*>(shared));
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) out[i] += x[i] * factor * args.weight[i];
}

GEMLET_CUDA_KERNEL(add, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] += args.x[i];
}

GEMLET_CUDA_KERNEL(gelu_mul, GeluArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y;
  if (i >= args.dim) return;
  args.out[row * args.dim + i] = gelu_tanh(args.gate[row * args.gate_stride + i]) * args.up[row * args.up_stride + i];
}

GEMLET_CUDA_KERNEL(gaussian_topk, RowArgs) {
  GEMLET_SHARED(shared);
  float* const sums = reinterpret_cast<float*>(shared);
  float* const x = args.out + blockIdx.x * args.dim;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) sum += x[i];
  const float mean = block_sum(sum, sums) / static_cast<float>(args.dim);
  float squares = 0;
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) squares = fmaf(x[i] - mean, x[i] - mean, squares);
  const float deviation = sqrtf(block_sum(squares, sums) / static_cast<float>(args.dim));
  const float cutoff = mean + args.factor * deviation;
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) x[i] = x[i] > cutoff ? x[i] - cutoff : 0.0f;
}

GEMLET_CUDA_KERNEL(softcap, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] = args.factor * tanhf(args.x[i] / args.factor);
}

GEMLET_CUDA_KERNEL(scale, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] = args.x[i] * args.factor;
}

GEMLET_CUDA_KERNEL(scale_by, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] = args.x[i] * args.vector[0];
}

GEMLET_CUDA_KERNEL(mul_rows, FactorArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.out[i] = args.x[i] * args.vector[i % args.dim];
}

GEMLET_CUDA_KERNEL(embed, EmbedArgs) {
  const int64_t row = args.ids[blockIdx.x];
  float* const out = args.out + blockIdx.x * args.table.cols;
  for (int64_t i = threadIdx.x; i < args.table.cols; i += blockDim.x) {
    out[i] = weight_at(args.table, row, i) * args.scale;
  }
}

GEMLET_CUDA_KERNEL(round_rows, RoundArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y;
  if (i >= args.dim) return;
  float* const out = args.out + row * args.stride + i;
  const float x = args.x == args.out ? *out : args.x[row * args.dim + i];
  const float steps = rintf(x / args.scale);
  *out = x != x ? x : fminf(fmaxf(steps, -128.0f), 127.0f) * args.scale;
}

// A thread copies 16 bytes, or one byte if the addresses are not aligned.
GEMLET_CUDA_KERNEL(copy_bytes, CopyArgs) {
  const int64_t i = grid_thread(), first = args.units ? i * 16 : i;
  if (args.units && first + 16 <= args.bytes) {
    *reinterpret_cast<uint4*>(args.to + first) = load_16(args.from + first);
    return;
  }
  const int64_t end = args.units ? args.bytes : i + 1;
  for (int64_t at = first; at < end && at < args.bytes; ++at) args.to[at] = args.from[at];
}

GEMLET_CUDA_KERNEL(gather, GatherArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y;
  if (i < args.dim) args.out[row * args.dim + i] = args.x[args.rows[row] * args.dim + i];
}

GEMLET_CUDA_KERNEL(combine, GatherArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y;
  if (i >= args.dim) return;
  float sum = 0;
  for (int64_t j = row * args.per_row; j < (row + 1) * args.per_row; ++j) {
    sum = fmaf(args.weights[j], args.x[args.rows[j] * args.dim + i], sum);
  }
  args.out[row * args.dim + i] = sum;
}

GEMLET_CUDA_KERNEL(add_table, TableArgs) {
  const int64_t i = grid_thread();
  if (i < args.count) args.x[i] = fmaf(args.table_scale, args.values[i], args.x[i]) * args.out_scale;
}

// One warp chooses the experts of one row. Each round chooses the largest logit among the experts that are not chosen
// yet. Among equal logits it chooses the first.
GEMLET_CUDA_KERNEL(route, RouteArgs) {
  const float* const logits = args.logits + blockIdx.x * args.experts;
  int32_t* const ids = args.ids + blockIdx.x * args.count;
  float* const weights = args.weights + blockIdx.x * args.count;
  float last = 0, first = 0, sum = 0;
  int last_id = -1;
  for (int64_t round = 0; round < args.count; ++round) {
    float best = 0;
    int best_id = -1;
    for (int id = static_cast<int>(threadIdx.x); id < args.experts; id += 32) {
      const float x = logits[id];
      const bool chosen = round > 0 && (x > last || (x == last && id <= last_id));
      if (!chosen && (best_id < 0 || x > best)) {
        best = x;
        best_id = id;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, step);
      const int other_id = __shfl_xor_sync(kAllLanes, best_id, step);
      if (other_id >= 0 && (best_id < 0 || other > best || (other == best && other_id < best_id))) {
        best = other;
        best_id = other_id;
      }
    }
    if (round == 0) first = best;
    last = best;
    last_id = best_id;
    const float weight = expf(best - first);
    sum += weight;
    if (threadIdx.x == 0) {
      ids[round] = best_id < 0 ? 0 : best_id;
      weights[round] = weight;
    }
  }
  if (threadIdx.x != 0) return;
  for (int64_t i = 0; i < args.count; ++i) weights[i] = weights[i] / sum * args.scale[ids[i]];
}

GEMLET_CUDA_KERNEL(altup_predict, AltupArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y, streams = args.streams;
  if (i >= args.dim) return;
  float m[kMaxStreams];
  for (int64_t j = 0; j < streams; ++j) m[j] = tanhf(args.modalities[row * streams + j] * args.input_scale);
  for (int64_t k = 0; k < streams; ++k) {
    float sum = args.x[(k * args.rows + row) * args.dim + i];
    for (int64_t j = 0; j < streams; ++j) {
      const float* const coefs = args.coefs[row] + (k * streams + j) * streams;
      float c = 0;
      for (int64_t n = 0; n < streams; ++n) c = fmaf(coefs[n], m[n], c);
      sum = fmaf(c, args.x[(j * args.rows + row) * args.dim + i], sum);
    }
    args.out[(k * args.rows + row) * args.dim + i] = sum;
  }
}

GEMLET_CUDA_KERNEL(altup_correct, AltupArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y, streams = args.streams;
  if (i >= args.dim) return;
  float m[kMaxStreams];
  for (int64_t j = 0; j < streams; ++j) m[j] = tanhf(args.modalities[row * streams + j] * args.input_scale);
  const float change = args.activated[row * args.dim + i] - args.x[row * args.dim + i];
  for (int64_t k = 0; k < streams; ++k) {
    float c = 0;
    for (int64_t n = 0; n < streams; ++n) c = fmaf(args.coefs[row][k * streams + n], m[n], c);
    const int64_t at = (k * args.rows + row) * args.dim + i;
    args.out[at] = fmaf(c + 1.0f, change, args.x[at]);
  }
}

GEMLET_CUDA_KERNEL(match_magnitude, RowArgs) {
  GEMLET_SHARED(shared);
  float* const sums = reinterpret_cast<float*>(shared);
  const float* const target = args.x + blockIdx.x * args.dim;
  float* const x = args.out + blockIdx.x * args.dim;
  float wanted = 0, have = 0;
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) {
    wanted = fmaf(target[i], target[i], wanted);
    have = fmaf(x[i], x[i], have);
  }
  wanted = block_sum(wanted, sums) / static_cast<float>(args.dim);
  have = fmaxf(block_sum(have, sums) / static_cast<float>(args.dim), 1e-5f);
  const float factor = sqrtf(wanted / have);
  for (int64_t i = threadIdx.x; i < args.dim; i += blockDim.x) x[i] *= factor;
}

GEMLET_CUDA_KERNEL(rope_angles, AnglesArgs) {
  const int64_t i = grid_thread(), row = blockIdx.y;
  if (i >= args.frequency_count) return;
  // The angle is rounded to float32 first, as the reference does.
  const float angle = static_cast<float>(args.positions[row]) * args.frequencies[i];
  args.cosines[row * args.frequency_count + i] = cosf(angle);
  args.sines[row * args.frequency_count + i] = sinf(angle);
}

}  // namespace gemlet::cuda
