// The logarithms of the probabilities that the model gives to tokens, before penalties and filters change them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/logit_row.h"

namespace gemlet {

struct TokenLogprob {
  int32_t id;
  float logprob;
};

struct Logprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // the most likely tokens, in falling order; of equal ones, the lower id comes first
};

class LogprobReader {
 public:
  // Returns the log probability of `chosen`, and of the `top` most likely tokens. logits [vocab]. Throws
  // kInvalidRequest if `chosen` is no id of the logits or if all logits are -infinity, and kTensor if there is NaN or
  // +infinity.
  Logprobs read(std::span<const float> logits, int32_t chosen, size_t top);

 private:
  LogitRow row_;
  std::vector<LogitRow::Entry> entries_;
};

}  // namespace gemlet
