#include "kernels/simd/neon.h"
//
#include "kernels/rowwise/body.h"
