#include "kernels/simd/amx.h"
//
#include "kernels/peak/body_tiles.h"
