// Converts the quantized blocks of GGUF files.
#pragma once

#include <cstdint>

#include "formats/source_types.h"

namespace gemlet {

// Whether a block of 32 values is one f16 scale times integers of eight bits. integer_block() returns the scale and
// writes the integers: value i is q[i] * scale.
bool has_integer_blocks(SourceType type);
uint16_t integer_block(SourceType type, const uint8_t* block, int8_t* q);

// Converts `count` blocks of `type`, which is not a float type. Scales are multiplied in the order of GGUF's reference,
// so the results are the same bits.
void decode_blocks(SourceType type, const uint8_t* blocks, int64_t count, float* out);

}  // namespace gemlet
