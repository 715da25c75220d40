// The options for choosing the tokens of a text: plain numbers and ids, and the check of their ranges.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "engine/repetition.h"

namespace gemlet {

// Makes it unlikely that a text goes on as it did before (DRY). A token that would make a repetition longer loses
// multiplier * base^(length of the repetition so far - allowed_length), if that length is at least allowed_length.
struct DryConfig {
  double multiplier = 0.0;  // 0: none
  double base = 1.75;       // >= 1
  int64_t allowed_length = 2;
  std::shared_ptr<const SequenceBreakers> breakers;  // no repetition reaches across a breaker; null: there are none
};

// The members are in the order in which they are applied. All ids are at least 0, and ids beyond the logits are
// ignored.
struct SamplerConfig {
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the logits of these ids
  double repetition_penalty = 1.0;  // > 0; divides positive and multiplies negative logits of all tokens so far
  double frequency_penalty = 0.0;   // subtracted from a token's logit for each time that it was generated
  double presence_penalty = 0.0;    // subtracted once from the logit of every token that was generated
  DryConfig dry;
  int64_t no_repeat_ngram = 0;      // no run of this many tokens appears twice; 0: no limit
  int64_t min_tokens = 0;           // an id of end_ids is chosen only after this many tokens
  std::vector<int32_t> end_ids;     // used only by min_tokens
  std::vector<int32_t> suppressed;  // never chosen
  int64_t vocab_limit = 0;          // ids from here on are never chosen; 0: no limit
  double temperature = 1.0;         // 0: greedy, and the members below have no effect
  int64_t top_k = 0;                // 0: all
  double top_p = 1.0;               // range: (0, 1]
  double min_p = 0.0;               // range: [0, 1); the least probability, as a share of the likeliest token's
  double typical_p = 1.0;           // range: (0, 1]
  uint64_t seed = 0;
  uint64_t drawn = 0;         // random numbers to skip, so that the sampler continues where another one stopped
  int64_t prompt_tokens = 0;  // the first tokens of each history that are the prompt; the others were generated
};

// Throws kInvalidRequest, naming the value that is out of range.
void check_sampler_config(const SamplerConfig& config);

}  // namespace gemlet
