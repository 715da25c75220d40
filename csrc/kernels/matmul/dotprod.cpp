#include "kernels/simd/dotprod.h"
//
#include "kernels/matmul/lines_dotprod.h"
//
#include "kernels/matmul/body_int8_arm.h"
//
#include "kernels/matmul/body_bits.h"
//
#include "kernels/matmul/body_rows.h"
