#include "kernels/simd/avxvnni.h"
//
#include "kernels/peak/body_vnni.h"
