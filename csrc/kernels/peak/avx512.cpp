#include "kernels/simd/avx512.h"
//
#include "kernels/peak/body_f32.h"
//
#include "kernels/peak/body_pairs.h"
