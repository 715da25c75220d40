#include "kernels/simd/avxvnni.h"
//
#include "kernels/simd/dots_vnni.h"
//
#include "kernels/attention/body_int8.h"
