#include "kernels/simd/avx512.h"
//
#include "kernels/attention/body.h"
