// The definition of the format bf12: bf16 in 12 bits, without loss. formats.h describes its layout.
//
// Trained weights have few different exponents: nearly all weights of a row have one of 15 consecutive exponents, so a
// code of four bits can name the exponent. Weights whose exponent has no code are listed. Sign and mantissa stay as
// they are.
#pragma once

#include <cstdint>

#include "formats/formats.h"

namespace gemlet {

// Like pack_panel(). Returns false if a value is not finite, or if a panel has no room for all exceptions.
bool pack_bf12(const float* rows, int64_t row_count, int64_t cols, uint8_t* panel);

// Whether pack_bf12() can pack these bf16 numbers. It may be false for rows of more than a million columns.
bool fits_bf12(const uint16_t* rows, int64_t row_count, int64_t cols);

// Writes the weights of columns [8 * superblock, + 8) of a panel as the four lines that bf16 would have.
void expand_bf12(const uint8_t* panel, int64_t cols, int64_t superblock, uint16_t (&words)[kBf12Words]);

}  // namespace gemlet
