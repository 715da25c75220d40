#include "kernels/simd/dotprod.h"
//
#include "kernels/attention/body_int8.h"
