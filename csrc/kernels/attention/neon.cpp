#include "kernels/simd/neon.h"
//
#include "kernels/attention/body_float.h"
//
#include "kernels/attention/body_int8.h"
//
#include "kernels/attention/body_store.h"
