#include "kernels/simd/amx.h"
//
#include "kernels/matmul/body_tiles.h"
//
#include "kernels/matmul/body_static_tiles.h"
