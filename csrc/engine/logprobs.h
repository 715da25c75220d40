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
  std::vector<TokenLogprob> top;  // the likeliest, in falling order; of equal ones, the lower id comes first
};

class LogprobReader {
 public:
  // The logprobs of `chosen` and of the `top` likeliest in logits [vocab]. Throws kInvalidRequest if the logits have no
  // such id or are all -infinity, and kTensor if they hold NaN or infinity.
  Logprobs read(std::span<const float> logits, int32_t chosen, size_t top);

 private:
  LogitRow row_;
  std::vector<LogitRow::Entry> entries_;
};

}  // namespace gemlet
