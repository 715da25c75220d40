// Repacks blocks of a file whose values a packed format can hold exactly: scales and integers stay as they are.
#pragma once

#include <cstdint>
#include <optional>

#include "formats/formats.h"
#include "formats/source_types.h"

namespace gemlet {

// The scales of some rows, `per_row` for each row, for types whose scales are in another tensor.
struct SourceScales {
  const float* scales = nullptr;
  int64_t rows = 0, per_row = 0;
};

// True for q4 from q4_0, q5 from q5_0, q4k, q5k and q6k from q4_k, q5_k and q6_k, and for q8 from q8_0, q5_0, q4_0 and
// iq4_nl; r8, r4 and r2 from i8, i4 and i2 with one scale for a row; w4a16 and q4 from i4x32 if f16 has all scales, or
// has them up to 2^-25 where they are below its normal range.
bool can_repack(Format format, SourceType type, const SourceScales& own = {});

// The smallest format that can hold every value of `type`; none if there is no such format. For types with scales of
// their own, can_repack() must accept the scales.
std::optional<Format> exact_format(SourceType type);

// Packs up to 16 consecutive rows of blocks into one panel and pads it with zeros. Returns false if a scale is not
// finite.
bool repack_panel(Format format, SourceType type, const uint8_t* rows, int64_t row_count, int64_t cols, uint8_t* panel,
                  const SourceScales& own = {});

}  // namespace gemlet
