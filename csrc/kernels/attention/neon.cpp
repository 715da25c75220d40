#include "kernels/simd/neon.h"
//
#include "kernels/attention/body.h"
