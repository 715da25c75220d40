// The definition of the format bf12: bf16 in 12 bits, without loss. formats.h has its layout.
//
// The exponents of trained weights are few: in a row nearly all lie within 15 of each other, so a code of four bits
// tells them apart, and the exponents that have none are listed. Sign and mantissa stay as they are.
#pragma once

#include <cstdint>

#include "formats/formats.h"

namespace gemlet {

// As pack_panel(). Returns false if a value is not finite, or if there are more exceptions than a panel has room for.
bool pack_bf12(const float* rows, int64_t row_count, int64_t cols, uint8_t* panel);

// The weights of columns [8 superblock, + 8) of a panel, as the four lines that bf16 would have.
void expand_bf12(const uint8_t* panel, int64_t cols, int64_t superblock, uint16_t (&words)[kBf12Words]);

}  // namespace gemlet
