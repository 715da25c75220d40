#include "formats/formats.h"

namespace gemlet {

std::string_view format_name(Format format) {
  switch (format) {
#define GEMLET_NAME_FORMAT(id, name) \
  case Format::k##id:                \
    return #name;
    GEMLET_FORMATS(GEMLET_NAME_FORMAT)
#undef GEMLET_NAME_FORMAT
  }
  return "unknown";
}

std::optional<Format> format_from_name(std::string_view text) {
#define GEMLET_MATCH_FORMAT(id, name) \
  if (text == #name) return Format::k##id;
  GEMLET_FORMATS(GEMLET_MATCH_FORMAT)
#undef GEMLET_MATCH_FORMAT
  return std::nullopt;
}

namespace {

// "f32, bf16" from ", f32, bf16".
std::string without_first_comma(const char* names) { return names + 2; }

}  // namespace

#define GEMLET_LIST_FORMAT(id, name) ", " #name
std::string format_names() { return without_first_comma(GEMLET_FORMATS(GEMLET_LIST_FORMAT)); }
#undef GEMLET_LIST_FORMAT

std::string_view kv_format_name(KvFormat format) {
  switch (format) {
#define GEMLET_NAME_KV_FORMAT(id, name, bits) \
  case KvFormat::k##id:                       \
    return #name;
    GEMLET_KV_FORMATS(GEMLET_NAME_KV_FORMAT)
#undef GEMLET_NAME_KV_FORMAT
  }
  return "unknown";
}

std::optional<KvFormat> kv_format_from_name(std::string_view text) {
#define GEMLET_MATCH_KV_FORMAT(id, name, bits) \
  if (text == #name) return KvFormat::k##id;
  GEMLET_KV_FORMATS(GEMLET_MATCH_KV_FORMAT)
#undef GEMLET_MATCH_KV_FORMAT
  return std::nullopt;
}

#define GEMLET_LIST_KV_FORMAT(id, name, bits) ", " #name
std::string kv_format_names() { return without_first_comma(GEMLET_KV_FORMATS(GEMLET_LIST_KV_FORMAT)); }
#undef GEMLET_LIST_KV_FORMAT

int64_t bits_of(KvFormat format) {
  switch (format) {
#define GEMLET_KV_FORMAT_BITS(id, name, bits) \
  case KvFormat::k##id:                       \
    return bits;
    GEMLET_KV_FORMATS(GEMLET_KV_FORMAT_BITS)
#undef GEMLET_KV_FORMAT_BITS
  }
  return 0;
}

int32_t zero_point(Format format) {
  switch (format) {
    case Format::kQ8:
    case Format::kR8:
      return kQ8Zero;
    case Format::kQ6k:
      return kQ6Zero;
    case Format::kQ5:
      return kQ5Zero;
    case Format::kQ4:
    case Format::kW4a16:
    case Format::kR4:
      return kQ4Zero;
    case Format::kR2:
      return kR2Zero;
    default:
      return 0;
  }
}

int64_t block_bytes(Format format) {
  switch (format) {
    case Format::kQ8:
      return kQ8BlockBytes;
    case Format::kQ6k:
      return kQ6BlockBytes;
    case Format::kQ5k:
    case Format::kQ5:
      return kQ5BlockBytes;
    case Format::kQ4k:
    case Format::kQ4:
    case Format::kW4a16:
      return kQ4BlockBytes;
    default:
      return 0;
  }
}

bool has_minimum(Format format) { return format == Format::kQ4k || format == Format::kQ5k; }

bool in_groups(Format format) { return has_minimum(format) || format == Format::kQ6k; }

int row_bits(Format format) {
  switch (format) {
    case Format::kR8:
      return 8;
    case Format::kR4:
      return 4;
    case Format::kR2:
      return 2;
    default:
      return 0;
  }
}

int64_t superblock_offset(Format format, int64_t index) {
  const int64_t lines_of_groups = in_groups(format) ? (index / kGroupSuperblocks + 1) * kLineBytes : 0;
  return index * (kScaleBytes + 2 * block_bytes(format)) + lines_of_groups;
}

bool takes_balance(Format format) {
  return block_bytes(format) > 0 && format != Format::kQ8 && format != Format::kW4a16;
}

int64_t padded_cols(Format format, int64_t cols) {
  int64_t unit = kSuperblock;
  if (format == Format::kF32) unit = 1;
  if (format == Format::kBf16) unit = 2;
  if (format == Format::kBf12) unit = kBf12Columns;
  return (cols + unit - 1) / unit * unit;
}

int64_t panel_bytes(Format format, int64_t cols) {
  const int64_t padded = padded_cols(format, cols);
  switch (format) {
    case Format::kF32:
      return padded * kPanelRows * 4;
    case Format::kBf16:
      return padded * kPanelRows * 2;
    case Format::kBf12:
      return bf12_exceptions_at(cols) + bf12_exception_bytes(cols);
    case Format::kR8:
    case Format::kR4:
    case Format::kR2:
      return kRowScaleBytes + padded * kPanelRows * row_bits(format) / 8;
    default: {
      const int64_t superblocks = padded / kSuperblock;
      return superblock_offset(format, superblocks - 1) + kScaleBytes + 2 * block_bytes(format);
    }
  }
}

}  // namespace gemlet
