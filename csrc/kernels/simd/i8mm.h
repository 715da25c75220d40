// Baseline, sdot, usdot (unsigned weights) and usmmla, which multiplies 32 byte pairs: 2 outputs x 2 rows x 8 columns.
// Included by i8mm.cpp files only.
#pragma once

#define GEMLET_TIER i8mm

#include "kernels/simd/arm.h"
