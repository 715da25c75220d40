#include "base/checksum.h"

#include <bit>
#include <cstring>

namespace gemlet {
namespace {

// The primes of xxHash64 (Collet), whose construction this follows in outline.
constexpr uint64_t kPrime1 = 0x9e3779b185ebca87, kPrime2 = 0xc2b2ae3d27d4eb4f, kPrime3 = 0x165667b19e3779f9;

uint64_t mixed(uint64_t lane, uint64_t word) { return std::rotl(lane + word * kPrime2, 31) * kPrime1; }

}  // namespace

uint64_t checksum64(const void* data, size_t bytes, uint64_t seed) {
  const auto* at = static_cast<const uint8_t*>(data);
  size_t left = bytes;
  const auto word = [&] {
    uint64_t value = 0;
    const size_t count = left < sizeof(value) ? left : sizeof(value);
    std::memcpy(&value, at, count);
    at += count;
    left -= count;
    return value;
  };
  uint64_t lanes[4] = {seed + kPrime1, seed + kPrime2, seed ^ kPrime3, seed - kPrime1};
  while (left >= 4 * sizeof(uint64_t)) {
    for (uint64_t& lane : lanes) lane = mixed(lane, word());
  }
  uint64_t sum = mixed(bytes, seed);
  for (const uint64_t lane : lanes) sum = mixed(sum ^ lane, kPrime3);
  while (left > 0) sum = mixed(sum, word());
  sum = (sum ^ (sum >> 33)) * kPrime2;
  sum = (sum ^ (sum >> 29)) * kPrime3;
  return sum ^ (sum >> 32);
}

}  // namespace gemlet
