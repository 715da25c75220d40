#include "kernels/simd/avx512vnni.h"
//
#include "kernels/matmul/dots_vnni.h"
//
#include "kernels/attention/body_int8.h"
