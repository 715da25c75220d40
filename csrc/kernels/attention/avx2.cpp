#include "kernels/simd/avx2.h"
//
#include "kernels/attention/body.h"
