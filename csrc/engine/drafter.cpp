#include "engine/drafter.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace gemlet {
namespace {

constexpr size_t kLeast = 2;       // tokens in common
constexpr size_t kMost = 32;       // tokens that are compared
constexpr int kMostPlaces = 32;    // places that are looked at
constexpr size_t kSlots = 1 << 8;  // slots of a new table

// The number of equal tokens just before the two places, at most kMost. `place` < `end`.
size_t common_before(std::span<const int32_t> ids, size_t place, size_t end) {
  size_t count = 0;
  while (count < std::min(place, kMost) && ids[place - 1 - count] == ids[end - 1 - count]) ++count;
  return count;
}

}  // namespace

size_t PromptLookup::slot(std::span<const int32_t> ids, size_t end) const {
  const auto pair = static_cast<uint64_t>(static_cast<uint32_t>(ids[end - 2])) << 32 |
                    static_cast<uint64_t>(static_cast<uint32_t>(ids[end - 1]));
  return static_cast<size_t>((pair * 0x9e3779b97f4a7c15u) >> 32) & (latest_.size() - 1);
}

// All places before the end of the text.
void PromptLookup::index(std::span<const int32_t> ids) {
  if (latest_.size() < ids.size()) {
    latest_.assign(std::max(kSlots, std::bit_ceil(2 * ids.size())), 0);
    earlier_.clear();
  }
  for (size_t place = earlier_.size(); place < ids.size(); ++place) {
    uint32_t before = 0;
    if (place >= kLeast) before = std::exchange(latest_[slot(ids, place)], static_cast<uint32_t>(place));
    earlier_.push_back(before);
  }
}

Draft PromptLookup::propose(std::span<const int32_t> ids, int64_t most) {
  if (ids.size() <= kLeast || most <= 0) return {};
  index(ids);
  size_t best = 0, common = kLeast - 1;
  uint32_t place = latest_[slot(ids, ids.size())];
  for (int i = 0; i < kMostPlaces && place > 0 && common < kMost; ++i, place = earlier_[place]) {
    const size_t count = common_before(ids, place, ids.size());
    if (count <= common) continue;
    common = count;
    best = place;
  }
  Draft draft;
  if (best == 0) return draft;
  draft.kind = common < 4 ? 0 : common < 9 ? 1 : 2;
  // If the text repeats itself, the copied place reaches the end of the text. The copy then goes on with the draft.
  for (size_t i = 0; i < static_cast<size_t>(most); ++i) {
    draft.ids.push_back(best + i < ids.size() ? ids[best + i] : draft.ids[best + i - ids.size()]);
  }
  return draft;
}

}  // namespace gemlet
