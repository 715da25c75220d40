#include "formats/source_rows.h"

#include <cstring>

#include "base/float_bits.h"
#include "formats/gguf_blocks.h"
#include "formats/layout.h"

namespace gemlet {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void stored_integers(const void* data, SourceType type, int64_t first, int64_t count, uint8_t* q) {
  const uint8_t* const source = static_cast<const uint8_t*>(data) + source_bytes(type, first);
  if (type == SourceType::kI8) {
    for (int64_t i = 0; i < count; ++i) q[i] = static_cast<uint8_t>(source[i] ^ kQ8Zero);
  } else if (type == SourceType::kI2) {
    for (int64_t i = 0; i < count; ++i) q[i] = source[i / 4] >> (i % 4 * 2) & 3;
  } else {
    for (int64_t i = 0; i < count; ++i) q[i] = source[i / 2] >> (i % 2 * 4) & 15;
  }
}

void widen_scaled(const void* data, SourceType type, int64_t count, int64_t cols, const float* scales, int64_t per_row,
                  float* out) {
  const int zero = type == SourceType::kI8 ? kQ8Zero : type == SourceType::kI2 ? kR2Zero : kQ4Zero;
  const int64_t part = cols / per_row;
  std::vector<uint8_t> q(static_cast<size_t>(cols));
  for (int64_t r = 0; r < count; ++r) {
    stored_integers(data, type, r * cols, cols, q.data());
    for (int64_t c = 0; c < cols; ++c) {
      out[r * cols + c] = static_cast<float>(q[static_cast<size_t>(c)] - zero) * scales[r * per_row + c / part];
    }
  }
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
  if (has_own_scales(type)) {  // only the integers
    const float one = 1.0f;
    return widen_scaled(source, type, 1, count, &one, 1, out);
  }
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
