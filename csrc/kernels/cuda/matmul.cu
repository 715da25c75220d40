// y = x W^T on packed matrices.
//
// With few rows, reading the weights takes most of the time. A block of four warps computes one panel, which has 16
// outputs. The warps take turns over the columns. A lane reads 16 bytes at a time, which are words of 4 rows of the
// panel, and multiplies them by up to 8 rows of x in float32. So the bits of a row do not depend on the other rows.
//
// With many rows, arithmetic takes most of the time. A block then computes 64 rows x 64 outputs with tensor cores: x
// and the weights are rounded to bf16 in shared memory, 64 columns at a time, and products are added in float32.
#include "kernels/cuda/tensor_cores.h"
#include "kernels/cuda/weights.h"

namespace gemlet::cuda {
namespace {

constexpr int kWarps = 4;

__device__ __forceinline__ bool is_open(const MatmulArgs& args, int64_t panel) {
  if (!args.gate) return true;
  bool open = false;
  for (int64_t r = panel * kPanelRows; r < (panel + 1) * kPanelRows && r < args.weight.rows; ++r) {
    open |= args.gate[r] != 0.0f;
  }
  return open;
}

// Four neighbouring columns of a row. Columns after its end are 0.
__device__ __forceinline__ void columns_of(const MatmulArgs& args, const float* x, int64_t col, float (&values)[4]) {
  if (args.vectors && col + 4 <= args.weight.cols) {
    const float4 all = *reinterpret_cast<const float4*>(x + col);
    values[0] = all.x;
    values[1] = all.y;
    values[2] = all.z;
    values[3] = all.w;
    return;
  }
  for (int i = 0; i < 4; ++i) values[i] = col + i < args.weight.cols ? x[col + i] : 0.0f;
}

template <int kRows, int kCount>
__device__ __forceinline__ void add_products(const float (&w)[4][kCount], const float (&x)[kCount], int row,
                                             float (&sums)[kRows][4]) {
  for (int r = 0; r < 4; ++r) {
    for (int i = 0; i < kCount; ++i) sums[row][r] = fmaf(w[r][i], x[i], sums[row][r]);
  }
}

template <Format kFormat, int kRows>
__device__ __forceinline__ void multiply_few(const MatmulArgs& args, float* shared) {
  using Read = Reader<kFormat>;
  constexpr int kCount = Read::kCount;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int group = lane / 4, quad = lane % 4;
  const int64_t panel = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * kRows, cols = args.weight.cols;
  const uint8_t* const data = panel_of(args.weight, panel);
  float sums[kRows][4] = {};
  if (is_open(args, panel)) {
    const int64_t steps = (cols + Read::kStepColumns - 1) / Read::kStepColumns;
    for (int64_t step = warp; step < steps; step += kWarps) {
      float w[4][kCount];
      Read::read(args.weight, data, step, group, quad, w);
      const int64_t column = Read::column(step, group);
      for (int row = 0; row < kRows; ++row) {
        if (first + row >= args.rows) break;
        const float* const x = args.x + (first + row) * cols;
        float values[kCount];
        if constexpr (kCount % 4 != 0) {
          for (int i = 0; i < kCount; ++i) values[i] = column + i < cols ? x[column + i] : 0.0f;
        } else {
          for (int run = 0; run < kCount / 4; ++run) {
            float four[4];
            columns_of(args, x, column + run * Read::kApart, four);
            for (int i = 0; i < 4; ++i) values[run * 4 + i] = four[i];
          }
        }
        add_products<kRows, kCount>(w, values, row, sums);
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int r = 0; r < 4; ++r) {
      float sum = sums[row][r];
      for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (group == 0) shared[(warp * kRows + row) * kPanelRows + quad * 4 + r] = sum;
    }
  }
  __syncthreads();
  const int64_t row = threadIdx.x / kPanelRows, r = threadIdx.x % kPanelRows;
  const int64_t output = panel * kPanelRows + r;
  if (row >= kRows || first + row >= args.rows || output >= args.weight.rows) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared[(w * kRows + row) * kPanelRows + r];
  if constexpr (kFormat == Format::kBf12) {
    // The steps above treated exceptions as weights near zero. Here they get their exponents.
    if (is_open(args, panel)) {
      for_bf12_exceptions(data, cols, 0, 1, [&](int64_t place, uint32_t exponent) {
        const int64_t col = place / kBf12Words * kBf12Columns + place % kBf12Words / 32 * 2 + place % 2;
        if (place % 32 / 2 != r || col >= cols) return;
        const uint32_t coded = bf12_bits(data, r, col);
        const float change = bits_to_f32(((coded & kBf12Kept) | exponent << 7) << 16) - bits_to_f32(coded << 16);
        sum = fmaf(change, args.x[(first + row) * cols + col], sum);
      });
    }
  }
  args.y[(first + row) * args.y_stride + output] = sum;
}

// Writes a tile of x as bf16 to shared memory: 64 rows x 64 columns from column `col` on.
__device__ __forceinline__ void stage_x(const MatmulArgs& args, int64_t first, int64_t col, uint16_t* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kProductRows * kTileDepth / 4; i += static_cast<int>(blockDim.x)) {
    const int row = i / (kTileDepth / 4), c = i % (kTileDepth / 4) * 4;
    float values[4] = {0, 0, 0, 0};
    if (first + row < args.rows) columns_of(args, args.x + (first + row) * args.weight.cols, col + c, values);
    for (int n = 0; n < 4; ++n) tile[row * kTileStride + c + n] = f32_to_bf16(values[n]);
  }
}

// Writes a tile of weights as bf16 to shared memory: the outputs of four panels, [output][column], from column `col`
// on. Each warp expands one panel.
template <Format kFormat>
__device__ __forceinline__ void stage_weights(const MatmulArgs& args, int64_t col, uint16_t* tile) {
  using Read = Reader<kFormat>;
  constexpr int kCount = Read::kCount;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int group = lane / 4, quad = lane % 4;
  const int64_t panel = static_cast<int64_t>(blockIdx.x) * (kTileOutputs / kPanelRows) + warp;
  const bool exists = panel * kPanelRows < args.weight.rows;
  const uint8_t* const data = panel_of(args.weight, exists ? panel : 0);
  for (int step = 0; step < kTileDepth / Read::kStepColumns; ++step) {
    const int64_t at = col / Read::kStepColumns + step;
    float w[4][kCount] = {};
    if (exists && at * Read::kStepColumns < args.weight.cols) Read::read(args.weight, data, at, group, quad, w);
    const int64_t column = Read::column(at, group) - col;
    for (int r = 0; r < 4; ++r) {
      uint16_t* const to = tile + (warp * kPanelRows + quad * 4 + r) * kTileStride + column;
      for (int i = 0; i < kCount; ++i) to[i / 4 * Read::kApart + i % 4] = f32_to_bf16(w[r][i]);
    }
  }
}

template <Format kFormat>
__device__ __forceinline__ void multiply_tiles(const MatmulArgs& args, uint16_t* shared) {
  uint16_t* const x_tile = shared;
  uint16_t* const w_tile = shared + kProductRows * kTileStride;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int warp_row = warp / 2 * 32, warp_output = warp % 2 * 32;  // a warp has a quarter of the block's outputs
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kProductRows;
  float sums[2][4][4] = {};
  for (int64_t col = 0; col < args.weight.cols; col += kTileDepth) {
    __syncthreads();
    stage_x(args, first, col, x_tile);
    stage_weights<kFormat>(args, col, w_tile);
    __syncthreads();
    for (int k = 0; k < kTileDepth; k += 16) {
      uint32_t a[2][4], b[2][4];
      for (int m = 0; m < 2; ++m) {
        const int row = warp_row + m * 16 + lane % 16;
        load_matrices(a[m], x_tile + row * kTileStride + k + lane / 16 * 8);
      }
      for (int n = 0; n < 2; ++n) {
        const int output = warp_output + n * 16 + lane / 16 * 8 + lane % 8;
        load_matrices(b[n], w_tile + output * kTileStride + k + lane / 8 % 2 * 8);
      }
      for (int m = 0; m < 2; ++m) {
        for (int n = 0; n < 4; ++n) {
          const uint32_t pair[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
          multiply_add(sums[m][n], a[m], pair);
        }
      }
    }
  }
  for (int m = 0; m < 2; ++m) {
    for (int n = 0; n < 4; ++n) {
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first + warp_row + m * 16 + lane / 4 + i / 2 * 8;
        const int64_t output =
            static_cast<int64_t>(blockIdx.x) * kTileOutputs + warp_output + n * 8 + lane % 4 * 2 + i % 2;
        if (row < args.rows && output < args.weight.rows) args.y[row * args.y_stride + output] = sums[m][n][i];
      }
    }
  }
}

}  // namespace

#define GEMLET_FEW(name, format, rows)                                  \
  GEMLET_CUDA_KERNEL(matmul_##name##_##rows, MatmulArgs) {              \
    GEMLET_SHARED(shared);                                              \
    multiply_few<format, rows>(args, reinterpret_cast<float*>(shared)); \
  }
#define GEMLET_TILES(name, format)                                     \
  GEMLET_CUDA_KERNEL(matmul_##name##_tiles, MatmulArgs) {              \
    GEMLET_SHARED(shared);                                             \
    multiply_tiles<format>(args, reinterpret_cast<uint16_t*>(shared)); \
  }
#define GEMLET_ALL(name, format) \
  GEMLET_FEW(name, format, 1)    \
  GEMLET_FEW(name, format, 2)    \
  GEMLET_FEW(name, format, 4)    \
  GEMLET_FEW(name, format, 8)
GEMLET_ALL(f32, Format::kF32)
GEMLET_ALL(bf16, Format::kBf16)
GEMLET_ALL(bf12, Format::kBf12)
GEMLET_ALL(q8, Format::kQ8)
GEMLET_ALL(q6k, Format::kQ6k)
GEMLET_ALL(q5k, Format::kQ5k)
GEMLET_ALL(q5, Format::kQ5)
GEMLET_ALL(q4k, Format::kQ4k)
GEMLET_ALL(q4, Format::kQ4)
GEMLET_ALL(r8, Format::kR8)
GEMLET_ALL(r4, Format::kR4)
GEMLET_ALL(r2, Format::kR2)
GEMLET_TILES(bf16, Format::kBf16)
GEMLET_TILES(q8, Format::kQ8)
GEMLET_TILES(q6k, Format::kQ6k)
GEMLET_TILES(q5k, Format::kQ5k)
GEMLET_TILES(q5, Format::kQ5)
GEMLET_TILES(q4k, Format::kQ4k)
GEMLET_TILES(q4, Format::kQ4)
#undef GEMLET_FEW
#undef GEMLET_TILES
#undef GEMLET_ALL

}  // namespace gemlet::cuda
