#include "engine/text_key.h"

#include <algorithm>

#include "formats/layout.h"

namespace gemlet {
namespace {

// Ids have fewer bits than the marks that stand for soft tokens.
constexpr int32_t kSoft = INT32_MIN;
constexpr int32_t kNoToken = int32_t{1} << 30;
constexpr int32_t kIdBits = kNoToken - 1;

bool is_token(int32_t number) { return number >= 0 || (number & kNoToken) == 0; }

void push_bits(std::vector<int32_t>& numbers, uint32_t bits) {  // 16 of them
  numbers.push_back(kSoft | kNoToken | static_cast<int32_t>(bits));
}

// The numbers before the first row of an image or a sound.
std::vector<int32_t> heading(const Media& media) {
  std::vector<int32_t> numbers;
  const auto count = static_cast<uint64_t>(media.count);
  for (int shift = 0; shift < 64; shift += 16) push_bits(numbers, count >> shift & 0xffff);
  push_bits(numbers, media.sees_itself ? 1 : 0);
  for (size_t i = 0; i < media.digest.size(); i += 2) push_bits(numbers, media.digest[i] | media.digest[i + 1] << 8);
  return numbers;
}

}  // namespace

TextKey::TextKey(std::span<const int32_t> ids, std::span<const PlacedMedia> media) {
  numbers_.reserve(ids.size());
  auto next = media.begin();
  int64_t soft_end = 0;
  for (const int32_t id : ids) {
    if (next != media.end() && next->first == tokens_) {
      const Media& one = *next->media;
      const std::vector<int32_t> numbers = heading(one);
      numbers_.insert(numbers_.end(), numbers.begin(), numbers.end());
      soft_end = tokens_ + one.count;
      if (one.sees_itself) spans_.push_back({tokens_, soft_end});
      ++next;
    }
    push(tokens_ < soft_end ? kSoft | id : id);
  }
}

void TextKey::push(int32_t number) {
  numbers_.push_back(number);
  if (++tokens_ % kKvBlockTokens == 0) ends_.push_back(numbers_.size());
}

void TextKey::add(int32_t id) { push(id); }

std::span<const int32_t> TextKey::first(int64_t tokens) const {
  const int64_t block = tokens / kKvBlockTokens;
  const size_t begin = block == 0 ? 0 : ends_[static_cast<size_t>(block - 1)];
  const std::span<const int32_t> all = numbers_;
  return all.first(begin + numbers_of(all.subspan(begin), tokens - block * kKvBlockTokens));
}

std::span<const int32_t> TextKey::block(int64_t index, int64_t end) const {
  const size_t begin = index == 0 ? 0 : ends_[static_cast<size_t>(index - 1)];
  return first(std::min({end, tokens_, (index + 1) * kKvBlockTokens})).subspan(begin);
}

int64_t TextKey::tokens_in(std::span<const int32_t> numbers) {
  return std::count_if(numbers.begin(), numbers.end(), is_token);
}

size_t TextKey::numbers_of(std::span<const int32_t> numbers, int64_t tokens) {
  size_t count = 0;
  for (int64_t found = 0; found < tokens && count < numbers.size(); ++count) found += is_token(numbers[count]) ? 1 : 0;
  return count;
}

std::vector<int32_t> TextKey::ids_in(std::span<const int32_t> numbers) {
  std::vector<int32_t> ids;
  for (const int32_t number : numbers) {
    if (is_token(number)) ids.push_back(number & kIdBits);
  }
  return ids;
}

int64_t common_numbers(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace gemlet
