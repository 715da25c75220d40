#include "kernels/simd/amx_emulated.h"
//
#include "kernels/peak/body_tiles.h"
