// The key of a text in the prefix cache, in memory and on disk: a list of numbers, one for each token.
//
// A token's number is its id. That of a token with a soft row is negative, and has the id too. The first one of an
// image or a sound comes after numbers that belong to no token: how many rows it has, whether they see each other, and
// its whole digest. So two texts with the same numbers have the same keys and values, and no two are taken for the
// same.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/media.h"

namespace gemlet {

class TextKey {
 public:
  TextKey() = default;
  // `media` must be in order, must not overlap, and must lie among the ids.
  explicit TextKey(std::span<const int32_t> ids, std::span<const PlacedMedia> media = {});

  void add(int32_t id);
  int64_t tokens() const { return tokens_; }

  // The numbers of the first tokens.
  std::span<const int32_t> first(int64_t tokens) const;
  // The numbers of block `index`, of kKvBlockTokens tokens, up to token `end` of the text.
  std::span<const int32_t> block(int64_t index, int64_t end) const;
  std::span<const int32_t> block(int64_t index) const { return block(index, tokens_); }
  // `tokens`, or fewer, so that the first ones end within no image whose tokens see each other.
  int64_t whole(int64_t tokens) const { return whole_tokens(spans_, tokens); }

  // These read a list of numbers: how many tokens it has, how many numbers the first `tokens` take, and the ids.
  static int64_t tokens_in(std::span<const int32_t> numbers);
  static size_t numbers_of(std::span<const int32_t> numbers, int64_t tokens);
  static std::vector<int32_t> ids_in(std::span<const int32_t> numbers);

 private:
  void push(int32_t number);

  std::vector<int32_t> numbers_;
  std::vector<size_t> ends_;  // the end of the numbers of each full block
  std::vector<TokenSpan> spans_;
  int64_t tokens_ = 0;
};

// The number of equal numbers at the beginning of two texts.
int64_t common_numbers(std::span<const int32_t> a, std::span<const int32_t> b);

}  // namespace gemlet
