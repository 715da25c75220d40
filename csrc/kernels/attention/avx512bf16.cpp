#include "kernels/simd/avx512bf16.h"
//
#include "kernels/attention/body_bf16.h"
