#include "kernels/simd/amx_emulated.h"
//
#include "kernels/attention/body_tiles.h"
