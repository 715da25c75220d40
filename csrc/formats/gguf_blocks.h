// The quantized blocks of GGUF files as float32.
#pragma once

#include <cstdint>

#include "formats/source_types.h"

namespace gemlet {

// `count` blocks of `type` (not a float type). Scales are multiplied in the order that GGUF's reference has, so the
// values are its bits.
void decode_blocks(SourceType type, const uint8_t* blocks, int64_t count, float* out);

}  // namespace gemlet
