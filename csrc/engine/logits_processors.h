// Changes the logits before a token is chosen: biases, penalties and forbidden tokens. The order of the steps is that
// of Hugging Face's generate(), for the steps that it has. The result depends only on the logits and on the ids of the
// text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/sampler_config.h"

namespace gemlet {

class LogitsProcessors {
 public:
  // `config` must outlive the object.
  explicit LogitsProcessors(const SamplerConfig& config) : config_(config) {}

  // Whether apply() would change anything for a text of this many tokens.
  bool change_logits(size_t tokens) const;
  // logits [vocab]; history: the ids of the prompt and the generated tokens
  void apply(std::span<float> logits, std::span<const int32_t> history);

  // Drops buffers that another thread was changing during a fork.
  void leave_torn_behind();

 private:
  bool may_end(size_t tokens) const;
  void penalize_repetition(std::span<float> logits, std::span<const int32_t> history);
  void penalize_generated(std::span<float> logits, std::span<const int32_t> generated);
  void penalize_long_repetition(std::span<float> logits, std::span<const int32_t> history);
  void forbid_repeated_ngrams(std::span<float> logits, std::span<const int32_t> history) const;
  void count(std::span<const int32_t> ids, size_t vocab);

  const SamplerConfig& config_;
  std::vector<uint32_t> counts_;         // count of each id of the vocabulary; 0 between two steps
  std::vector<int32_t> counted_;         // the ids whose count is not 0
  std::vector<size_t> repeated_;         // repeated_lengths() of the history
  std::vector<int32_t> longest_ids_;     // ids that would continue a repetition
  std::vector<size_t> longest_lengths_;  // the length of the longest such repetition for each id of the vocabulary
};

}  // namespace gemlet
