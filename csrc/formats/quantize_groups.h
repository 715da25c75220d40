// Packing into the formats with groups (q4k, q5k, q6k): a row's scales are found for all blocks of a group first, and
// then rounded to small integers times one f16 number.
#pragma once

#include <cstdint>

#include "formats/formats.h"

namespace gemlet {

// Like pack_panel().
bool pack_groups(Format format, const float* rows, int64_t row_count, int64_t cols, uint8_t* panel,
                 const float* importance);

}  // namespace gemlet
