// Rotation, stores into the cache, and attention over the cache. kernels.h has the layout of the cache.
//
// A block of threads computes attention for one row and one key/value head. Each of its warps computes one query head
// of the group at a time. Keys are read in pieces of 256 tokens. Each lane reads 8 whole keys, so lanes exchange
// nothing to compute scores. For the values, each lane adds its own share of the dimensions. The results of the pieces
// are added in order, with an online softmax. So a row has the same bits whether one block reads all pieces, or several
// blocks read them and attention_merge adds the results.
#include "kernels/cuda/device.h"

namespace gemlet::cuda {
namespace {

constexpr KvFormat kKvF32 = KvFormat::kF32, kKvBf16 = KvFormat::kBf16, kKvInt8 = KvFormat::kInt8;
constexpr float kZeroPeak = 1e-33f;  // an int8 cache stores a key or value as zeros if no number in it is larger

constexpr int kv_element(KvFormat format) { return format == kKvF32 ? 4 : format == kKvBf16 ? 2 : 1; }

// Returns the i-th number of a unit of 16 bytes.
template <KvFormat kFormat>
__device__ __forceinline__ float number_of(const uint4& unit, int i) {
  const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
  if constexpr (kFormat == kKvF32) return bits_to_f32(words[i]);
  if constexpr (kFormat == kKvBf16) return i % 2 ? bf16_high(words[i / 2]) : bf16_low(words[i / 2]);
  return static_cast<float>(static_cast<int8_t>(words[i / 4] >> i % 4 * 8 & 255));
}

// Adds the result of a piece (its out, its largest score and its sum) to the result so far. A lane has kNumbers numbers
// of out.
template <int kNumbers>
__device__ __forceinline__ void add_piece(const float (&from)[kNumbers], float from_max, float from_sum, bool first,
                                          float (&to)[kNumbers], float& max, float& sum) {
  if (from_sum == 0.0f) return;  // the piece has no visible key
  const bool none = first || sum == 0.0f;
  const float largest = none ? from_max : larger(max, from_max);
  const float old_factor = none ? 0.0f : expf(max - largest), factor = expf(from_max - largest);
  for (int i = 0; i < kNumbers; ++i) to[i] = fmaf(from[i], factor, none ? 0.0f : to[i] * old_factor);
  sum = fmaf(from_sum, factor, none ? 0.0f : sum * old_factor);
  max = largest;
}

template <KvFormat kFormat, int kDim>
__device__ __forceinline__ void attend(const AttentionArgs& args, float* shared) {
  constexpr int kElement = kv_element(kFormat), kUnit = 16 / kElement;
  constexpr int kNumbers = kDim / 32;  // how many numbers of out a lane has
  constexpr int kKeys = static_cast<int>(kPieceTokens / 32);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const AttentionRow row = args.rows[blockIdx.x];
  const int64_t kv_head = blockIdx.y, dim = args.dim, padded = kv_padded(dim, kElement);
  const int64_t group = args.heads / args.kv_heads;
  const int64_t values_at = kv_values_at(dim, kElement), scales_at = kv_scales_at(dim, kElement);
  float* const q = shared + warp * padded;  // the query of this warp's head, padded with zeros
  const int64_t first_piece = row.begin / kPieceTokens + blockIdx.z * args.pieces_each;
  int64_t last_piece = (row.end + kPieceTokens - 1) / kPieceTokens;
  if (first_piece + args.pieces_each < last_piece) last_piece = first_piece + args.pieces_each;
  const auto head_of = [&](int64_t token) {
    const AttentionBlock block = args.blocks[row.first + token / kKvBlockTokens - row.first_block];
    return block.head + kv_head * block.stride;
  };

  for (int64_t head = warp; head < group; head += warps) {
    const int64_t query = row.out_row * args.heads + kv_head * group + head;
    __syncwarp();
    for (int64_t d = lane; d < padded; d += 32) q[d] = d < dim ? args.q[query * dim + d] : 0.0f;
    __syncwarp();
    float out[kNumbers] = {}, max = 0, sum = 0;
    for (int64_t piece = first_piece; piece < last_piece; ++piece) {
      float scores[kKeys], piece_max = 0;
      bool any = false;
      for (int i = 0; i < kKeys; ++i) {
        const int64_t token = piece * kPieceTokens + i * 32 + lane;
        scores[i] = 0;
        if (token < row.begin || token >= row.end) continue;
        const uint8_t* const kv = head_of(token);
        const int64_t slot = token % kKvBlockTokens;
        float score = 0;
        GEMLET_NOT_UNROLLED
        for (int64_t unit = 0; unit < padded / kUnit; ++unit) {
          const uint4 numbers = *reinterpret_cast<const uint4*>(kv + (unit * kKvBlockTokens + slot) * 16);
          for (int n = 0; n < kUnit; ++n) score = fmaf(q[unit * kUnit + n], number_of<kFormat>(numbers, n), score);
        }
        if constexpr (kFormat == kKvInt8) score *= reinterpret_cast<const float*>(kv + scales_at)[slot];
        if (args.softcap > 0.0f) score = args.softcap * tanhf(score / args.softcap);
        scores[i] = score;
        piece_max = any ? larger(piece_max, score) : score;
        any = true;
      }
      // Lanes without a visible key do not count in the maximum.
      for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, piece_max, step);
        const int other_any = __shfl_xor_sync(kAllLanes, static_cast<int>(any), step);
        if (other_any) piece_max = any ? larger(piece_max, other) : other;
        any = any || other_any;
      }
      if (!any) continue;
      float piece_sum = 0, piece_out[kNumbers] = {};
      for (int i = 0; i < kKeys; ++i) {
        const int64_t token = piece * kPieceTokens + i * 32 + lane;
        const bool visible = token >= row.begin && token < row.end;
        scores[i] = visible ? expf(scores[i] - piece_max) : 0.0f;
        piece_sum += scores[i];
      }
      piece_sum = warp_sum(piece_sum);
      for (int i = 0; i < kKeys; ++i) {
        const int64_t begin = piece * kPieceTokens + i * 32;
        if (begin + 32 <= row.begin || begin >= row.end) continue;
        const uint8_t* const kv = head_of(begin < row.begin ? row.begin : begin);
        GEMLET_NOT_UNROLLED
        for (int n = 0; n < 32; ++n) {
          const float weight = __shfl_sync(kAllLanes, scores[i], n);
          const int64_t token = begin + n;
          if (token < row.begin || token >= row.end) continue;
          const int64_t slot = token % kKvBlockTokens;
          float factor = weight;
          if constexpr (kFormat == kKvInt8)
            factor *= reinterpret_cast<const float*>(kv + scales_at)[kKvBlockTokens + slot];
          const uint8_t* const value = kv + values_at + slot * padded * kElement;
          for (int d = 0; d < kNumbers; ++d) {
            const int64_t at = d * 32 + lane;
            if (at >= dim) break;
            float number;
            if constexpr (kFormat == kKvF32) number = reinterpret_cast<const float*>(value)[at];
            if constexpr (kFormat == kKvBf16) number = bf16_low(reinterpret_cast<const uint16_t*>(value)[at]);
            if constexpr (kFormat == kKvInt8) number = static_cast<float>(reinterpret_cast<const int8_t*>(value)[at]);
            piece_out[d] = fmaf(factor, number, piece_out[d]);
          }
        }
      }
      add_piece<kNumbers>(piece_out, piece_max, piece_sum, sum == 0.0f, out, max, sum);
    }
    if (args.partials) {
      float* const to = args.partials + (query * args.splits + blockIdx.z) * (dim + 2);
      for (int d = 0; d < kNumbers; ++d) {
        if (d * 32 + lane < dim) to[d * 32 + lane] = out[d];
      }
      if (lane == 0) {
        to[dim] = max;
        to[dim + 1] = sum;
      }
    } else {
      const float factor = sum == 0.0f ? 1.0f : 1.0f / sum;
      for (int d = 0; d < kNumbers; ++d) {
        if (d * 32 + lane < dim) args.out[query * dim + d * 32 + lane] = out[d] * factor;
      }
    }
  }
}

// All threads of the block write one key or value, `x` in shared memory, into the cache. `unit_stride` is the number of
// bytes from one unit of 16 bytes to the next.
__device__ __forceinline__ void store_numbers(const float* x, int64_t dim, KvFormat format, uint8_t* to,
                                              int64_t unit_stride, float* scale_at, float* shared) {
  const int64_t element = kv_element(format), padded = kv_padded(dim, element), unit = 16 / element;
  float factor = 1;
  // If x is not finite, every number becomes 1, so that the scale (infinity or NaN) reaches all of the result.
  bool broken = false;
  if (format == kKvInt8) {
    float peak = 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) peak = larger(peak, fabsf(x[i]));
    peak = block_max(peak, shared);
    const bool zero = peak <= kZeroPeak, finite = peak <= 3.0e38f;
    broken = !zero && !finite;
    factor = zero || broken ? 0.0f : 127.0f / peak;
    if (threadIdx.x == 0) *scale_at = zero ? 0.0f : finite ? peak / 127.0f : peak;
  }
  for (int64_t i = threadIdx.x; i < padded; i += blockDim.x) {
    const float value = i < dim ? x[i] : 0.0f;
    uint8_t* const at = to + i / unit * unit_stride + i % unit * element;
    if (format == kKvF32) {
      *reinterpret_cast<float*>(at) = value;
    } else if (format == kKvBf16) {
      *reinterpret_cast<uint16_t*>(at) = f32_to_bf16(value);
    } else {
      *reinterpret_cast<int8_t*>(at) = broken ? 1 : static_cast<int8_t>(rintf(value * factor));
    }
  }
}

}  // namespace

#define GEMLET_ATTENTION(name, format, dim)                      \
  GEMLET_CUDA_KERNEL(attention_##name##_##dim, AttentionArgs) {  \
    GEMLET_SHARED(shared);                                       \
    attend<format, dim>(args, reinterpret_cast<float*>(shared)); \
  }
#define GEMLET_ALL(name, format)      \
  GEMLET_ATTENTION(name, format, 32)  \
  GEMLET_ATTENTION(name, format, 64)  \
  GEMLET_ATTENTION(name, format, 128) \
  GEMLET_ATTENTION(name, format, 256) \
  GEMLET_ATTENTION(name, format, 512) \
  GEMLET_ATTENTION(name, format, 1024)
GEMLET_ALL(f32, kKvF32)
GEMLET_ALL(bf16, kKvBf16)
GEMLET_ALL(int8, kKvInt8)
#undef GEMLET_ALL
#undef GEMLET_ATTENTION

// One warp computes one row of one head.
GEMLET_CUDA_KERNEL(attention_merge, MergeArgs) {
  constexpr int kNumbers = 32;
  const int lane = static_cast<int>(threadIdx.x);
  const AttentionRow row = args.rows[blockIdx.x];
  const int64_t query = row.out_row * args.heads + blockIdx.y, dim = args.dim;
  float out[kNumbers] = {}, max = 0, sum = 0;
  for (int64_t split = 0; split < args.splits; ++split) {
    const float* const from = args.partials + (query * args.splits + split) * (dim + 2);
    float piece[kNumbers] = {};
    for (int d = 0; d < kNumbers; ++d) {
      if (d * 32 + lane < dim) piece[d] = from[d * 32 + lane];
    }
    add_piece<kNumbers>(piece, from[dim], from[dim + 1], sum == 0.0f, out, max, sum);
  }
  const float factor = sum == 0.0f ? 1.0f : 1.0f / sum;
  for (int d = 0; d < kNumbers; ++d) {
    if (d * 32 + lane < dim) args.out[query * dim + d * 32 + lane] = out[d] * factor;
  }
}

// One block computes one row of one head. The heads of q come first, then the heads of k and v.
GEMLET_CUDA_KERNEL(rope_and_store, RopeArgs) {
  GEMLET_SHARED(shared);
  float* const sums = reinterpret_cast<float*>(shared);
  float* const rotated = sums + 40;
  const int64_t row = blockIdx.x, dim = args.dim, half = dim / 2;
  const int64_t q_heads = args.q ? args.heads : 0;
  const bool is_query = blockIdx.y < q_heads;
  const int64_t head = is_query ? blockIdx.y : blockIdx.y - q_heads;
  float* const x = is_query ? args.q + (row * args.heads + head) * dim : args.k + (row * args.kv_heads + head) * dim;
  const float* const norm = is_query ? args.q_norm : args.k_norm;
  const float scale = is_query ? args.query_scale : 1.0f;
  const auto inverse_rms = [&](const float* values) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) sum = fmaf(values[i], values[i], sum);
    return 1.0f / sqrtf(block_sum(sum, sums) / static_cast<float>(dim) + args.eps);
  };
  const float factor = norm ? inverse_rms(x) : 1.0f;
  const int64_t pairs = half / args.rope_parts;  // pairs of one part; each part is rotated like a whole head
  for (int64_t i = threadIdx.x; i < half; i += blockDim.x) {
    const int64_t low = i / pairs * 2 * pairs + i % pairs, high = low + pairs;
    const float cosine = args.cosines ? args.cosines[row * half + i] : 1.0f;
    const float sine = args.sines ? args.sines[row * half + i] : 0.0f;
    const float a = norm ? x[low] * factor * norm[low] : x[low];
    const float b = norm ? x[high] * factor * norm[high] : x[high];
    rotated[low] = (a * cosine - b * sine) * scale;
    rotated[high] = (b * cosine + a * sine) * scale;
  }
  __syncthreads();
  if (is_query) {
    for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) x[i] = rotated[i];
    return;
  }
  const KvPlace place = args.places[row];
  const int64_t element = kv_element(args.kv_format), slot = place.position % kKvBlockTokens;
  uint8_t* const kv = place.block + head * place.stride;
  float* const scales = reinterpret_cast<float*>(kv + kv_scales_at(dim, element));
  store_numbers(rotated, dim, args.kv_format, kv + slot * 16, kKvBlockTokens * 16, scales + slot, sums);
  const float* const v = args.v + (row * args.kv_heads + head) * dim;
  const float v_factor = args.v_norm ? inverse_rms(v) : 1.0f;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < dim; i += blockDim.x) rotated[i] = v[i] * v_factor;
  __syncthreads();
  const int64_t value_bytes = kv_padded(dim, element) * element;
  store_numbers(rotated, dim, args.kv_format, kv + kv_values_at(dim, element) + slot * value_bytes, 16,
                scales + kKvBlockTokens + slot, sums);
}

}  // namespace gemlet::cuda
