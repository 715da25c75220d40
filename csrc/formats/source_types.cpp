#include "formats/source_types.h"

#include <cstring>

#include "base/float_bits.h"
#include "formats/gguf_blocks.h"

namespace gemlet {

std::string_view source_type_name(SourceType type) {
  switch (type) {
#define GEMLET_NAME_SOURCE_TYPE(id, name, values, bytes) \
  case SourceType::k##id:                                \
    return #name;
    GEMLET_SOURCE_TYPES(GEMLET_NAME_SOURCE_TYPE)
#undef GEMLET_NAME_SOURCE_TYPE
  }
  return "unknown";
}

std::optional<SourceType> source_type_from_name(std::string_view text) {
#define GEMLET_MATCH_SOURCE_TYPE(id, name, values, bytes) \
  if (text == #name) return SourceType::k##id;
  GEMLET_SOURCE_TYPES(GEMLET_MATCH_SOURCE_TYPE)
#undef GEMLET_MATCH_SOURCE_TYPE
  return std::nullopt;
}

int64_t source_block_values(SourceType type) {
  switch (type) {
#define GEMLET_SOURCE_BLOCK_VALUES(id, name, values, bytes) \
  case SourceType::k##id:                                   \
    return values;
    GEMLET_SOURCE_TYPES(GEMLET_SOURCE_BLOCK_VALUES)
#undef GEMLET_SOURCE_BLOCK_VALUES
  }
  return 1;
}

int64_t source_block_bytes(SourceType type) {
  switch (type) {
#define GEMLET_SOURCE_BLOCK_BYTES(id, name, values, bytes) \
  case SourceType::k##id:                                  \
    return bytes;
    GEMLET_SOURCE_TYPES(GEMLET_SOURCE_BLOCK_BYTES)
#undef GEMLET_SOURCE_BLOCK_BYTES
  }
  return 1;
}

int64_t source_bytes(SourceType type, int64_t values) {
  return values / source_block_values(type) * source_block_bytes(type);
}

void widen(const void* data, SourceType type, int64_t first, int64_t count, float* out) {
  const uint8_t* const source = static_cast<const uint8_t*>(data) + source_bytes(type, first);
  const auto each = [&](auto convert) {  // a loop of its own for each type: that of bf16 becomes vector instructions
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, source + i * 2, 2);
      out[i] = convert(bits);
    }
  };
  switch (type) {
    case SourceType::kF32:
      std::memcpy(out, source, static_cast<size_t>(count) * 4);
      return;
    case SourceType::kBf16:
      return each([](uint16_t bits) { return bf16_to_f32(bits); });
    case SourceType::kF16:
      return each([](uint16_t bits) { return f16_to_f32(bits); });
    default:
      return decode_blocks(type, source, count / source_block_values(type), out);
  }
}

}  // namespace gemlet
