#include "engine/logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace gemlet {

Logprobs LogprobReader::read(std::span<const float> logits, int32_t chosen, size_t top) {
  if (static_cast<size_t>(chosen) >= logits.size()) {
    fail(ErrorCode::kInvalidRequest, "token id ", chosen, " has no logit, expected 0 to ",
         static_cast<int64_t>(logits.size()) - 1);
  }
  row_.read(logits);
  if (row_.largest() == -std::numeric_limits<float>::infinity()) fail(ErrorCode::kInvalidRequest, "no logit is finite");
  const double log_sum = static_cast<double>(row_.largest()) + std::log(row_.exp_sum(1.0));
  const auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - log_sum); };
  Logprobs found{{chosen, logprob(logits[static_cast<size_t>(chosen)])}, {}};
  if (top == 0) return found;
  top = std::min(top, logits.size());
  row_.collect(row_.rank_floor(top), entries_);
  const auto end = entries_.begin() + static_cast<int64_t>(top);
  std::partial_sort(entries_.begin(), end, entries_.end(), LogitRow::ComesBefore());
  for (auto entry = entries_.begin(); entry != end; ++entry) found.top.push_back({entry->id, logprob(entry->logit)});
  return found;
}

}  // namespace gemlet
