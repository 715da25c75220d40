// Baseline and sdot, which multiplies 16 byte pairs and adds them four by four. Included by dotprod.cpp files only.
#pragma once

#define GEMLET_TIER dotprod

#include "kernels/simd/arm.h"
