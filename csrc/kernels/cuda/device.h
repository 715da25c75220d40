// Helper functions for the CUDA kernels. nvcc compiles this file for the GPU. For the emulator, any C++ compiler
// compiles it.
#pragma once

#include <stdint.h>

#include "kernels/cuda/kernels.h"

#ifdef __CUDACC__
#define GEMLET_CUDA_KERNEL(name, Args) extern "C" __global__ void name(const Args args)
#define GEMLET_SHARED(bytes) extern __shared__ __align__(16) unsigned char bytes[]
#define GEMLET_NOT_UNROLLED _Pragma("unroll 1")
#else
#define GEMLET_NOT_UNROLLED
#include "kernels/cuda/emulated/cuda.h"
#endif

namespace gemlet::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ float bits_to_f32(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

__device__ __forceinline__ uint32_t f32_to_bits(float x) {
#ifdef __CUDACC__
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

__device__ __forceinline__ float bf16_low(uint32_t pair) { return bits_to_f32(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return bits_to_f32(pair & 0xffff0000u); }

// Rounds x to the nearest bf16, ties to even. NaN stays NaN.
__device__ __forceinline__ uint16_t f32_to_bf16(float x) {
  const uint32_t bits = f32_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ float f16_to_f32(uint16_t half) {
#ifdef __CUDACC__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
#else
  return emulated::f16_to_f32(half);
#endif
}

// Sums and maxima over all threads of a warp or of a block. Every thread gets the result. The order of additions is
// always the same. `shared` has room for 33 numbers. The first barrier makes sure that two calls can use the same room.
__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }  // NaN wins
__device__ __forceinline__ float warp_max(float x) {
  for (int step = 16; step > 0; step /= 2) x = larger(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
template <bool kMax>
__device__ __forceinline__ float block_reduce(float x, float* shared) {
  const int warps = static_cast<int>(blockDim.x / 32);
  x = kMax ? warp_max(x) : warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float all = shared[0];
  for (int warp = 1; warp < warps; ++warp) all = kMax ? larger(all, shared[warp]) : all + shared[warp];
  return all;
}
__device__ __forceinline__ float block_sum(float x, float* shared) { return block_reduce<false>(x, shared); }
__device__ __forceinline__ float block_max(float x, float* shared) { return block_reduce<true>(x, shared); }

__device__ __forceinline__ float gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

// The index of this thread in the whole grid.
__device__ __forceinline__ int64_t grid_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

}  // namespace gemlet::cuda
