#include "kernels/simd/avx512vnni.h"
//
#include "kernels/peak/body_vnni.h"
