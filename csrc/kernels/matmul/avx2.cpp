#include "kernels/simd/avx2.h"
//
#include "kernels/simd/dots_pairs.h"
//
#include "kernels/matmul/body_quantize.h"
//
#include "kernels/matmul/body_f32.h"
//
#include "kernels/matmul/body_int8.h"
//
#include "kernels/matmul/body_bits.h"
//
#include "kernels/matmul/body_static.h"
