#include "kernels/simd/avx2.h"
//
#include "kernels/matmul/body.h"
