#include "kernels/simd/avx512vnni.h"
//
#include "kernels/matmul/body.h"
