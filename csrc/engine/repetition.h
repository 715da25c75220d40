// Finds repetitions in a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace gemlet {

// Sets lengths[d], for d from 1 to ids.size(): the length of the longest common suffix of `ids` and of `ids` without
// its last d tokens. It takes linear time (the Z function of the reversed text, Gusfield 1997).
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

  // The number of tokens after the last breaker in `ids`. Without a breaker, this is the number of all tokens. If
  // several breakers begin with the same token, the longest one counts.
  size_t tokens_after_last(std::span<const int32_t> ids) const;

 private:
  std::vector<Group> groups_;
  std::unordered_map<int32_t, std::vector<size_t>> groups_of_;  // key: a head; its groups, the longest tail first
};

}  // namespace gemlet
