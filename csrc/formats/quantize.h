// The definition of the weight formats: rows of float32 become packed panels and back. The kernels are tested against
// these functions. Packing takes most of the time of loading a model, so it is written in vectors of four.
//
// The scale s of a block of 32 columns of a row is found in these ways, and rounded to f16:
//   q8: s = max|x| / 127, q = round(x / s).
//   q4: A few scales are tried, which put the value of largest magnitude at the end of the range or a little beyond.
//       For each, q = round(x / s), and the scale is then fitted to q by least squares: sum(x q) / sum(q q). The scale
//       with the least squared error is kept. A block that Q4_0 can hold exactly (with a -8 in it) stays exact. If
//       columns have an importance w, it weighs the squared errors of the fit and of the choice: sum(w x q) / sum(w q
//       q).
//   q5: as q4.
// quantize_groups.cpp describes q4k, q5k and q6k.
#pragma once

#include <cstdint>

#include "formats/formats.h"

namespace gemlet {

// Packs up to 16 consecutive rows (f32, row r at rows + r * cols) into one panel and pads it with zeros. Returns false
// if a value is not finite or does not fit the format (a scale that f16 cannot hold). `importance` [padded_cols] is the
// weight of an error in each column. Null means that all columns have the same weight. q8 and float formats do not use
// it.
bool pack_panel(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel,
                const float* importance = nullptr);

// Writes row `row` of the matrix to `out` [cols] as float32.
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace gemlet
