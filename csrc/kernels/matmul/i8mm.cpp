#include "kernels/simd/i8mm.h"
//
#include "kernels/matmul/lines_i8mm.h"
//
#include "kernels/matmul/body_int8_arm.h"
//
#include "kernels/matmul/body_bits.h"
//
#include "kernels/matmul/body_rows.h"
