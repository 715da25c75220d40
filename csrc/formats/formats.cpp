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
#define GEMLET_NAME_KV_FORMAT(id, name, bytes) \
  case KvFormat::k##id:                        \
    return #name;
    GEMLET_KV_FORMATS(GEMLET_NAME_KV_FORMAT)
#undef GEMLET_NAME_KV_FORMAT
  }
  return "unknown";
}

std::optional<KvFormat> kv_format_from_name(std::string_view text) {
#define GEMLET_MATCH_KV_FORMAT(id, name, bytes) \
  if (text == #name) return KvFormat::k##id;
  GEMLET_KV_FORMATS(GEMLET_MATCH_KV_FORMAT)
#undef GEMLET_MATCH_KV_FORMAT
  return std::nullopt;
}

#define GEMLET_LIST_KV_FORMAT(id, name, bytes) ", " #name
std::string kv_format_names() { return without_first_comma(GEMLET_KV_FORMATS(GEMLET_LIST_KV_FORMAT)); }
#undef GEMLET_LIST_KV_FORMAT

int64_t element_bytes(KvFormat format) {
  switch (format) {
#define GEMLET_KV_FORMAT_BYTES(id, name, bytes) \
  case KvFormat::k##id:                         \
    return bytes;
    GEMLET_KV_FORMATS(GEMLET_KV_FORMAT_BYTES)
#undef GEMLET_KV_FORMAT_BYTES
  }
  return 0;
}

int32_t zero_point(Format format) { return format == Format::kQ4 ? kQ4Zero : format == Format::kQ8 ? kQ8Zero : 0; }

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
    case Format::kQ8:
      return padded / kSuperblock * kQ8SuperblockBytes;
    case Format::kQ4:
      return padded / kSuperblock * kQ4SuperblockBytes;
  }
  return 0;
}

}  // namespace gemlet
