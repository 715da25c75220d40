#include "kernels/simd/avxvnni.h"
//
#include "kernels/simd/dots_vnni.h"
//
#include "kernels/matmul/body_int8.h"
//
#include "kernels/matmul/body_bits.h"
//
#include "kernels/matmul/body_rows.h"
