#include "engine/repetition.h"

#include <algorithm>
#include <utility>

namespace gemlet {

void repeated_lengths(std::span<const int32_t> ids, std::vector<size_t>& lengths) {
  const size_t count = ids.size();
  const auto from_end = [&](size_t i) { return ids[count - 1 - i]; };
  lengths.assign(count + 1, 0);
  lengths[0] = count;
  size_t begin = 0, end = 0;  // the stretch, counted from the end of the text, that is known to repeat the text's end
  for (size_t shift = 1; shift < count; ++shift) {
    size_t length = shift < end ? std::min(end - shift, lengths[shift - begin]) : 0;
    while (shift + length < count && from_end(length) == from_end(shift + length)) ++length;
    lengths[shift] = length;
    if (shift + length > end) {
      begin = shift;
      end = shift + length;
    }
  }
}

SequenceBreakers::SequenceBreakers(std::vector<Group> groups) : groups_(std::move(groups)) {
  std::stable_sort(groups_.begin(), groups_.end(),
                   [](const Group& a, const Group& b) { return a.tail.size() > b.tail.size(); });
  for (size_t i = 0; i < groups_.size(); ++i) {
    for (const int32_t head : groups_[i].heads) groups_of_[head].push_back(i);
  }
}

bool SequenceBreakers::is_breaker(int32_t id) const {
  const auto found = groups_of_.find(id);
  return found != groups_of_.end() && groups_[found->second.back()].tail.empty();
}

size_t SequenceBreakers::tokens_after_last(std::span<const int32_t> ids) const {
  for (size_t after = 0; after < ids.size(); ++after) {
    const size_t at = ids.size() - 1 - after;
    const auto found = groups_of_.find(ids[at]);
    if (found == groups_of_.end()) continue;
    for (const size_t group : found->second) {
      const std::vector<int32_t>& tail = groups_[group].tail;
      if (tail.size() <= after && std::equal(tail.begin(), tail.end(), ids.begin() + static_cast<int64_t>(at) + 1)) {
        return after - tail.size();
      }
    }
  }
  return ids.size();
}

}  // namespace gemlet
