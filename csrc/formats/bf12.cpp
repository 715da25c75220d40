#include "formats/bf12.h"

#include <algorithm>
#include <cstring>

#include "base/float_bits.h"

namespace gemlet {
namespace {

constexpr int kLineWords = 32;
constexpr int kLines = kBf12Words / kLineWords;
constexpr int kCodes = 15;  // codes for exponents other than 0
constexpr uint16_t kExponent = 0x7f80;
constexpr int kInfinite = 255;
constexpr int64_t kMostPlaces = 1 << 24;  // the number of places that an exception can name

uint16_t swapped(uint16_t word) { return static_cast<uint16_t>(word << 8 | word >> 8); }

inline uint16_t bf16_of(float x) { return f32_to_bf16(x); }
inline uint16_t bf16_of(uint16_t bits) { return bits; }

struct Exponents {
  int first;  // the first of the 15 consecutive exponents that cover the most weights; 0: a weight is not finite
  int64_t exceptions;  // weights that these exponents do not cover
};

template <typename Number>
Exponents exponents_of(const Number* row, int64_t cols) {
  constexpr int kChains = 4;  // separate counters, so that no increment waits for another
  uint32_t counts[kChains][256] = {};
  for (int64_t c = 0; c < cols; ++c) ++counts[c % kChains][bf16_of(row[c]) >> 7 & 255];
  const auto count = [&](int exponent) {
    uint32_t sum = 0;
    for (const auto& chain : counts) sum += chain[exponent];
    return sum;
  };
  if (count(kInfinite) > 0) return {0, cols};
  uint32_t covered = 0, most = 0;
  int best = 1;
  for (int last = 1; last < kInfinite; ++last) {
    covered += count(last);
    if (last > kCodes) covered -= count(last - kCodes);
    if (covered > most) {
      most = covered;
      best = std::max(1, last - kCodes + 1);
    }
  }
  return {best, cols - count(0) - most};
}

struct Exceptions {
  uint8_t* out;
  int64_t most;
  uint32_t count = 0;

  bool add(int64_t place, uint16_t word) {
    if (count == most || place >= kMostPlaces) return false;
    const uint32_t entry = static_cast<uint32_t>(place << 8) | (word >> 7 & 255u);
    std::memcpy(out + 4 * ++count, &entry, 4);
    return true;
  }
};

}  // namespace

bool fits_bf12(const uint16_t* rows, int64_t row_count, int64_t cols) {
  if (cols * kPanelRows > kMostPlaces) return false;
  for (int64_t first = 0; first < row_count; first += kPanelRows) {
    int64_t exceptions = 0;
    for (int64_t r = first; r < std::min(first + kPanelRows, row_count); ++r) {
      const Exponents found = exponents_of(rows + r * cols, cols);
      if (found.first == 0) return false;
      exceptions += found.exceptions;
    }
    if (exceptions > most_bf12_exceptions(cols)) return false;
  }
  return true;
}

bool pack_bf12(const float* rows, int64_t row_count, int64_t cols, uint8_t* panel) {
  uint16_t bases[kLineWords] = {};
  for (int64_t r = 0; r < row_count; ++r) {
    const int first = exponents_of(rows + r * cols, cols).first;
    if (first == 0) return false;
    bases[2 * r] = bases[2 * r + 1] = static_cast<uint16_t>((first - 1) << 7);
  }
  std::memcpy(panel, bases, sizeof bases);
  Exceptions exceptions = {panel + bf12_exceptions_at(cols), most_bf12_exceptions(cols)};
  std::memset(exceptions.out, 0, static_cast<size_t>(bf12_exception_bytes(cols)));
  uint8_t* out = panel + sizeof bases;
  for (int64_t first = 0; first < cols; first += kBf12Columns, out += kBf12SuperblockBytes) {
    const int64_t width = std::min<int64_t>(kBf12Columns, cols - first);
    uint16_t words[kLines][kLineWords] = {};
    for (int64_t r = 0; r < row_count; ++r) {
      for (int64_t c = 0; c < width; ++c) words[c / 2][r * 2 + c % 2] = f32_to_bf16(rows[r * cols + first + c]);
    }
    uint16_t codes[kLines][kLineWords];
    for (int line = 0; line < kLines; ++line) {
      uint16_t lost = 0;
      for (int i = 0; i < kLineWords; ++i) {
        const uint16_t exponent = words[line][i] & kExponent;
        const uint16_t code = static_cast<uint16_t>(exponent - bases[i]);
        const bool fits = static_cast<uint16_t>(code - (1 << 7)) <= (kCodes - 1) << 7;
        codes[line][i] = fits ? code : 0;
        lost |= fits ? 0 : exponent;
      }
      for (int i = 0; lost != 0 && i < kLineWords; ++i) {
        const uint16_t word = words[line][i];
        if (codes[line][i] != 0 || (word & kExponent) == 0) continue;
        if (!exceptions.add(first * kPanelRows + line * kLineWords + i, word)) return false;
      }
    }
    uint16_t packed[3][kLineWords];
    for (int i = 0; i < kLineWords; ++i) {
      for (int pair = 0; pair < 2; ++pair) {
        packed[pair][i] = static_cast<uint16_t>((words[2 * pair][i] & kBf12Kept) |
                                                swapped(static_cast<uint16_t>(words[2 * pair + 1][i] & kBf12Kept)));
      }
      packed[2][i] = static_cast<uint16_t>(codes[0][i] | codes[1][i] << 4 | codes[2][i] >> 4 | swapped(codes[3][i]));
    }
    std::memcpy(out, packed, sizeof packed);
  }
  std::memcpy(exceptions.out, &exceptions.count, 4);
  return true;
}

void expand_bf12(const uint8_t* panel, int64_t cols, int64_t superblock, uint16_t (&words)[kBf12Words]) {
  uint16_t bases[kLineWords], packed[3][kLineWords];
  std::memcpy(bases, panel, sizeof bases);
  std::memcpy(packed, panel + sizeof bases + superblock * kBf12SuperblockBytes, sizeof packed);
  for (int i = 0; i < kLineWords; ++i) {
    const uint16_t code = packed[2][i];
    const int codes[kLines] = {code, code >> 4, code << 4, swapped(code)};
    for (int line = 0; line < kLines; ++line) {
      const uint16_t kept = line % 2 == 0 ? packed[line / 2][i] : swapped(packed[line / 2][i]);
      const int exponent = (codes[line] & kBf12Code) == 0 ? 0 : (codes[line] & kBf12Code) + bases[i];
      words[line * kLineWords + i] = static_cast<uint16_t>((kept & kBf12Kept) | exponent);
    }
  }
  // The panel may come from a damaged file, so neither the count nor the order of the list is trusted.
  const uint8_t* const list = panel + bf12_exceptions_at(cols);
  uint32_t count;
  std::memcpy(&count, list, 4);
  for (int64_t i = 0; i < std::min<int64_t>(count, most_bf12_exceptions(cols)); ++i) {
    uint32_t entry;
    std::memcpy(&entry, list + 4 + 4 * i, 4);
    if ((entry >> 8) / kBf12Words != static_cast<uint64_t>(superblock)) continue;
    uint16_t& word = words[(entry >> 8) % kBf12Words];
    word = static_cast<uint16_t>((word & kBf12Kept) | (entry & 255) << 7);
  }
}

}  // namespace gemlet
