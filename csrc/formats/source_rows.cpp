#include "formats/source_rows.h"

#include <cstring>

#include "base/float_bits.h"
#include "formats/gguf_blocks.h"

namespace gemlet {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void widen(const void* data, SourceType type, int64_t first, int64_t count, float* out) {
  const uint8_t* const source = static_cast<const uint8_t*>(data) + source_bytes(type, first);
  const auto each = [&](auto convert) {  // one loop for each type, so that the compiler vectorizes that of bf16
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
