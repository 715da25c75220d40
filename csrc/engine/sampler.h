// Chooses the next token from logits. The order of the steps is that of Hugging Face's generate(): first biases,
// penalties and forbidden tokens (engine/logits_processors.h), then temperature, top-k, top-p, min-p and typical-p,
// then one draw.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/fork_mutex.h"
#include "engine/logit_row.h"
#include "engine/logits_processors.h"
#include "engine/sampler_config.h"

namespace gemlet {

// One bit for each id, set if the id may be chosen. The lowest bit of the first number is for id 0. Empty: all ids may
// be chosen.
using TokenMask = std::vector<uint32_t>;

class Sampler {
 public:
  explicit Sampler(const SamplerConfig& config);  // throws kInvalidRequest for values out of range
  ~Sampler();

  const SamplerConfig& config() const { return config_; }

  // logits [vocab]; history: the ids of the prompt and of the generated tokens; mask: see TokenMask. Throws kTensor if
  // the logits hold NaN or infinity, and kInvalidRequest if no token may be chosen.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> history, std::span<const uint32_t> mask = {});
  // The token that sample() would choose after `ahead` more calls. Draws no random number.
  int32_t guess(std::span<const float> logits, std::span<const int32_t> history, int64_t ahead);
  // The tokens that sample() may choose, with their probabilities. Draws no random number.
  std::vector<std::pair<int32_t, double>> distribution(std::span<const float> logits, std::span<const int32_t> history);

 private:
  struct Ranked {
    double rank;
    int32_t id;
    double weight;
    bool operator<(const Ranked& other) const { return rank < other.rank || (rank == other.rank && id < other.id); }
  };
  int32_t choose(std::span<const float> logits, std::span<const int32_t> history, std::span<const uint32_t> mask);
  bool choose_from(std::span<const float> logits, std::span<const int32_t> history, std::span<const uint32_t> mask);
  void select_candidates(size_t count);
  void keep_typical();
  template <typename Condition>
  void keep_if(Condition condition);
  Ranked last_of_mass(double mass);
  double uniform();
  void leave_torn_behind();

  ForkMutex mutex_;  // one call at a time
  const SamplerConfig config_;
  uint64_t drawn_;
  LogitsProcessors processors_;
  LogitRow row_;
  std::vector<float> processed_;
  std::vector<LogitRow::Entry> candidates_;
  std::vector<double> weights_;  // weights of the candidates that may be drawn; these are the first candidates
  std::vector<Ranked> ranked_;
};

}  // namespace gemlet
