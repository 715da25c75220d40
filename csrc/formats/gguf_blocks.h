// Converts the quantized blocks of GGUF files.
#pragma once

#include <cstdint>

#include "formats/source_types.h"

namespace gemlet {

// Whether a block of `type` is one f16 scale times 32 integers of eight bits. integer_block() returns the scale and
// writes the integers: value i is q[i] * scale.
bool has_integer_blocks(SourceType type);
uint16_t integer_block(SourceType type, const uint8_t* block, int8_t* q);

// A block of q4_k, q5_k or q6_k: 8 times 32 values.
struct GroupedBlock {
  uint16_t scale, minimum;  // f16; minimum: 0 for q6_k
  uint8_t small[16];        // q4_k, q5_k: scale and minimum of each 32 values; q6_k: scales of each 16, signed
  uint8_t q[256];           // the integers as the file stores them, 0 or more
};
GroupedBlock grouped_block(SourceType type, const uint8_t* block);

// Converts `count` blocks of `type`, which is not a float type. Scales are multiplied in the order of GGUF's reference,
// so the results are the same bits.
void decode_blocks(SourceType type, const uint8_t* blocks, int64_t count, float* out);

}  // namespace gemlet
