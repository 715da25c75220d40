// Rows of a tensor as its file stores them, in memory or in an open file, and their conversion to float32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "formats/source_types.h"

namespace gemlet {

// Rows of a tensor, in row-major order. Rows in a file begin at byte `offset`. They are read a few at a time while they
// are packed.
struct SourceRows {
  std::vector<int64_t> shape;  // the shape of these rows
  SourceType type;
  const void* data = nullptr;  // null if the rows are in a file
  int descriptor = -1;
  int64_t offset = 0;
  // The scales of types whose scales are in another tensor: equally many for each row, each for the same number of
  // columns.
  std::vector<float> scales = {};
  bool balanced = false;  // the columns are multiplied by their balance already (model/balance.h)
};

// Converts `count` values from value `first` of `data` to float32. Both numbers are multiples of the block; `data` may
// lie at any byte. For types with scales of their own, the results are the integers without the scales.
void widen(const void* data, SourceType type, int64_t first, int64_t count, float* out);

// Writes the stored integers of types with scales of their own to `q`. A weight is (q - zero) * scale. 128 is added to
// i8, so that all q are unsigned.
void stored_integers(const void* data, SourceType type, int64_t first, int64_t count, uint8_t* q);
// Converts the weights of `count` rows to float32. `scales` has the scales of these rows, `per_row` for each row.
void widen_scaled(const void* data, SourceType type, int64_t count, int64_t cols, const float* scales, int64_t per_row,
                  float* out);

std::string shape_text(const std::vector<int64_t>& shape);  // "[rows, cols]", for messages

}  // namespace gemlet
