#include "kernels/simd/neon.h"
//
#include "kernels/matmul/lines_neon.h"
//
#include "kernels/matmul/body_quantize.h"
//
#include "kernels/matmul/body_f32.h"
//
#include "kernels/matmul/body_int8_arm.h"
//
#include "kernels/matmul/body_bits.h"
//
#include "kernels/matmul/body_static.h"
