#include "kernels/simd/avx512bf16.h"
//
#include "kernels/matmul/body_bf16.h"
