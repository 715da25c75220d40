#include "kernels/simd/avx512vnni.h"
//
#include "kernels/attention/body.h"
