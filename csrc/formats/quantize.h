// The definition of the weight formats: rows of float32 to packed panels and back. The kernels are tested against these
// functions; packing is also what the time to load a model goes into, so it is written in vectors of four.
//
// A block of 32 columns of a row under one scale s, rounded to f16:
//   q8: s = max|x| / 127, q = round(x / s)
//   q4: q = round(x / s) for a few scales that put the value of largest magnitude at or a little beyond the range's
//   end;
//       each scale is fitted to its q by least squares, sum(x q) / sum(q q), and the best one is kept. The values are
//       of Q4_0's set, and a block that Q4_0 holds exactly (with a -8 in it) stays exact.
#pragma once

#include <cstdint>

#include "formats/formats.h"

namespace gemlet {

// Packs up to 16 consecutive rows (source row r at rows + r * cols, f32) into one panel at `panel`, padding with zeros.
// Returns false if a value is not finite or does not fit the format (a scale beyond f16).
bool pack_panel(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel);

// Row `row` of the matrix as f32 [cols].
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace gemlet
