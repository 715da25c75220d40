#include "kernels/simd/avx2.h"
//
#include "kernels/simd/dots_pairs.h"
//
#include "kernels/attention/body_float.h"
//
#include "kernels/attention/body_int8.h"
//
#include "kernels/attention/body_store.h"
