#include "kernels/simd/avx512vnni.h"
//
#include "kernels/rowwise/body.h"
