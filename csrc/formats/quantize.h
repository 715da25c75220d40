// The definition of the weight formats: rows of float32 to packed panels and back. Speed matters only enough to load a
// model; the kernels are tested against these functions.
#pragma once

#include <cstdint>

#include "formats/formats.h"

namespace gemlet {

// Quantizes one block of 32 values. Writes q (q8: -127..127; q4: -8..7) and returns the scale, already rounded to f16.
//   q8: scale = max|x| / 127, q = round(x / scale)
//   q4: q = round(x / scale) for a few scales that put the value of largest magnitude at or a little beyond the range's
//       end; each scale is fitted to its q by least squares, sum(x q) / sum(q q), and the best one is kept. The values
//       are of Q4_0's set, and a block that Q4_0 holds exactly (with a -8 in it) stays exact.
float quantize_block_q8(const float* x, int8_t* q);
float quantize_block_q4(const float* x, int8_t* q);

// Packs up to 16 consecutive rows (source row r at rows + r * cols, f32) into one panel at `panel`, padding with zeros.
// Returns false if a value is not finite or does not fit the format (a scale beyond f16).
bool pack_panel(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel);

// Row `row` of the matrix as f32 [cols].
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace gemlet
