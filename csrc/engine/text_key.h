// The key of a text in the prefix cache, in memory and on disk: a list of numbers, one for each token.
//
// A token's number is its id. The number of a soft token (a row of an image or a sound) is negative and contains the
// id. Before the first soft token of an image or a sound there are numbers that belong to no token. They contain the
// count of its rows, whether these see each other, and the whole digest. So two texts have equal numbers only if they
// have equal keys and values.
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
  // The largest number, at most `tokens`, at which the text can be cut without cutting a span.
  int64_t whole(int64_t tokens) const { return whole_tokens(spans_, tokens); }

  // These functions read a list of numbers. They return its number of tokens, the count of numbers that the first
  // `tokens` take, and its ids.
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
