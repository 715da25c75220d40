#include "kernels/simd/avx512.h"
//
#include "kernels/rowwise/body.h"
