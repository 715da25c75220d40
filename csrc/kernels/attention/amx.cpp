#include "kernels/simd/amx.h"
//
#include "kernels/attention/body_tiles.h"
