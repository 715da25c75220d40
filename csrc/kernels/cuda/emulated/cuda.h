// CUDA on the CPU: enough of it to run the kernels of this folder without a GPU.
//
// Each thread of a block is a fiber, and a scheduler resumes them in an order that a seed shuffles. Barriers and warp
// operations are places where fibers meet. A barrier that some threads never reach is an error. Shared memory is filled
// with NaN and ends at a page that nobody can read. Addresses of global memory are those of the host, so
// AddressSanitizer sees what kernels do there.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define GEMLET_CUDA_KERNEL(name, Args) void name(const Args args)
#define GEMLET_SHARED(bytes) unsigned char* const bytes = gemlet::cuda::emulated::shared_memory()

namespace gemlet::cuda::emulated {

struct Index {
  unsigned x, y, z;
};

// The coordinates of the running thread and of its block.
struct Place {
  Index thread, block, threads, blocks;
};
const Place& place();
unsigned char* shared_memory();
void meet_block();
// Each lane of the warp gives 16 bytes, and gets the address of the bytes that all 32 lanes gave. These bytes stay
// valid during the next operation of the warp, but not after it.
struct Given {
  alignas(16) unsigned char bytes[16];
};
const Given* meet_warp(const void* given, size_t bytes);
inline void meet_warp_only() { meet_warp("", 1); }

struct Launch {
  Index blocks;
  unsigned threads;  // threads of a block, a multiple of 32
  size_t shared_bytes;
  uint64_t seed;  // shuffles the order in which threads run
};
// Runs the kernel to its end. Throws kInternal if its threads would wait for each other forever.
void run(void (*kernel)(const void* args), const void* args, const Launch& launch);

float f16_to_f32(uint16_t half);

// PTX operations on fragments. A fragment is the registers of one lane, in the layout of the PTX manual.
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void ldmatrix_x4(uint32_t (&out)[4], const void* row);

template <typename Value>
Value shuffle_xor(Value value, int mask) {
  const Given* const all = meet_warp(&value, sizeof value);
  Value result;
  memcpy(&result, all[(place().thread.x % 32) ^ static_cast<unsigned>(mask)].bytes, sizeof result);
  return result;
}
template <typename Value>
Value shuffle(Value value, int lane) {
  const Given* const all = meet_warp(&value, sizeof value);
  Value result;
  memcpy(&result, all[lane & 31].bytes, sizeof result);
  return result;
}

}  // namespace gemlet::cuda::emulated

#define threadIdx (gemlet::cuda::emulated::place().thread)
#define blockIdx (gemlet::cuda::emulated::place().block)
#define blockDim (gemlet::cuda::emulated::place().threads)
#define gridDim (gemlet::cuda::emulated::place().blocks)
#define __syncthreads() gemlet::cuda::emulated::meet_block()
#define __shfl_xor_sync(lanes, value, mask) gemlet::cuda::emulated::shuffle_xor(value, mask)
#define __syncwarp() gemlet::cuda::emulated::meet_warp_only()
#define __shfl_sync(lanes, value, lane) gemlet::cuda::emulated::shuffle(value, lane)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
