// Converts log probabilities for Python.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "engine/logprobs.h"

namespace gemlet::bindings {

// For each token: its log probability, and pairs (token id, log probability) of the most likely tokens.
using LogprobPairs = std::vector<std::pair<float, std::vector<std::pair<int32_t, float>>>>;

inline LogprobPairs pairs_of(const std::vector<Logprobs>& found) {
  LogprobPairs pairs;
  for (const Logprobs& one : found) {
    auto& top = pairs.emplace_back(one.chosen.logprob, std::vector<std::pair<int32_t, float>>()).second;
    for (const TokenLogprob& other : one.top) top.emplace_back(other.id, other.logprob);
  }
  return pairs;
}

}  // namespace gemlet::bindings
