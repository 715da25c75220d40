// Products on tensor cores: fragments of bf16, one instruction for each function (PTX ISA, "mma.m16n8k16", "ldmatrix").
#pragma once

#include "kernels/cuda/device.h"

namespace gemlet::cuda {

// Four matrices of 8 x 8 bf16 from shared memory. Lane 8 i + r gives the address of row r of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const uint16_t* row) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#else
  emulated::ldmatrix_x4(out, row);
#endif
}

// d [16, 8] += a [16, 16] * b [16, 8]
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulated::mma_m16n8k16_bf16(d, a, b);
#endif
}

}  // namespace gemlet::cuda
