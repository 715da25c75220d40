// Chooses the next token from logits. The order of the steps is that of Hugging Face's generate(): repetition penalty,
// temperature, top-k, top-p, min-p, then one draw.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/fork_mutex.h"

namespace gemlet {

struct SamplerConfig {
  double temperature = 1.0;         // 0 = greedy
  int64_t top_k = 0;                // 0 = all
  double top_p = 1.0;               // in (0, 1]
  double min_p = 0.0;               // in [0, 1): least probability relative to the likeliest token's
  double repetition_penalty = 1.0;  // > 0; divides positive and multiplies negative logits of tokens already seen
  uint64_t seed = 0;
  int64_t vocab_limit = 0;          // ids from here on are never chosen; 0 = no limit
  std::vector<int32_t> suppressed;  // ids that are never chosen
  uint64_t drawn = 0;               // random numbers that were drawn before: continues where another sampler stopped
};

class Sampler {
 public:
  explicit Sampler(const SamplerConfig& config);  // throws kInvalidRequest for values out of range
  ~Sampler();

  const SamplerConfig& config() const { return config_; }

  // logits [vocab]; history: the tokens that the repetition penalty applies to. Throws kInvalidRequest if the logits
  // hold NaN or infinity.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  void penalize(std::span<const int32_t> history);
  void select_candidates(std::span<const float> logits, float largest);
  float rank_floor(size_t count);
  void collect(std::span<const float> logits, float floor);
  float check_and_max(std::span<const float> logits);
  double uniform();
  void leave_torn_behind();

  ForkMutex mutex_;  // sample() from several threads takes turns
  SamplerConfig config_;
  uint64_t drawn_;
  std::vector<float> penalized_;
  std::vector<Candidate> candidates_;
  std::vector<double> weights_;
  std::vector<float> group_peaks_, ranked_peaks_;
};

}  // namespace gemlet
