// Finds where a text repeats itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace gemlet {

// lengths[d], for d from 1 to ids.size(): how many tokens at the end of `ids` are the same as those at its end without
// the last d tokens. In linear time (the Z function, Gusfield 1997, of the reversed text).
void repeated_lengths(std::span<const int32_t> ids, std::vector<size_t>& lengths);

// Short sequences of tokens, such as the end of a line. A repetition does not count across them.
class SequenceBreakers {
 public:
  // The sequences are each of the heads followed by the tail, or each head alone if there is no tail.
  struct Group {
    std::vector<int32_t> heads;
    std::vector<int32_t> tail;
  };

  explicit SequenceBreakers(std::vector<Group> groups);

  // Whether the token is a breaker by itself.
  bool is_breaker(int32_t id) const;

  // The number of tokens after the last breaker in `ids`, or of all tokens if there is none. If several breakers begin
  // with the same token, the longest counts.
  size_t tokens_after_last(std::span<const int32_t> ids) const;

 private:
  std::vector<Group> groups_;
  std::unordered_map<int32_t, std::vector<size_t>> groups_of_;  // key: a head; its groups, the longest tail first
};

}  // namespace gemlet
