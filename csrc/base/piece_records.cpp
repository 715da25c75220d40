#include "base/piece_records.h"

#include <cstdint>

namespace gemlet {
namespace {

constexpr uint8_t kPiece = 0x0A, kText = 0x0A, kScore = 0x15, kType = 0x18;  // tags
constexpr uint8_t kLong = 0x80;                                              // a number of more than one byte

// The end of the piece that begins at `at`, 0 if there is none.
size_t end_of_piece(std::string_view data, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(data[i]); };
  if (data.size() < at + 4 || byte(at) != kPiece || byte(at + 1) >= kLong) return 0;
  if (byte(at + 2) != kText || byte(at + 3) >= kLong) return 0;
  const size_t end = at + 2 + byte(at + 1), score = at + 4 + byte(at + 3);
  const bool typed = end == score + 7;
  if (end > data.size() || (end != score + 5 && !typed) || byte(score) != kScore) return 0;
  return typed && (byte(end - 2) != kType || byte(end - 1) >= kLong) ? 0 : end;
}

}  // namespace

size_t after_pieces(std::string_view data, size_t at) {
  while (const size_t end = end_of_piece(data, at)) at = end;
  return at;
}

bool rises_to(std::string_view data, size_t last) {
  size_t before = 0;
  for (size_t at = 0; at + 4 <= data.size(); at += 4) {
    size_t number = 0;
    for (size_t byte = 4; byte-- > 0;) number = number << 8 | static_cast<uint8_t>(data[at + byte]);
    if (number < before) return false;
    before = number;
  }
  return before == last;
}

}  // namespace gemlet
