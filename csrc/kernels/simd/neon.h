// The baseline of 64-bit Arm, armv8-a: every such processor has it. Included by neon.cpp files only.
#pragma once

#define GEMLET_TIER neon

#include "kernels/simd/arm.h"
