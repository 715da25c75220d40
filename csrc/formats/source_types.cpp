#include "formats/source_types.h"

namespace gemlet {

bool has_own_scales(SourceType type) {
  return type == SourceType::kI8 || type == SourceType::kI4 || type == SourceType::kI2 || type == SourceType::kI4x32;
}

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

}  // namespace gemlet
