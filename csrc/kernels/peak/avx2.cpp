#include "kernels/simd/avx2.h"
//
#include "kernels/peak/body_f32.h"
//
#include "kernels/peak/body_pairs.h"
