#include "kernels/simd/i8mm.h"
//
#include "kernels/attention/body_int8.h"
