#include "kernels/simd/avx2.h"
//
#include "kernels/rowwise/body.h"
