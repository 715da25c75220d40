#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "base/error.h"

namespace gemlet {
namespace {

// The numbers that are added to the logits of 8 ids, for each of their 256 masks: 0, or -infinity for forbidden ids.
struct Addends {
  constexpr Addends() {
    for (size_t bits = 0; bits < 256; ++bits) {
      for (size_t i = 0; i < 8; ++i) {
        of[bits][i] = (bits >> i & 1) != 0 ? 0.0f : -std::numeric_limits<float>::infinity();
      }
    }
  }
  float of[256][8] = {};
};
constexpr Addends kAddends;

// NaN stays NaN, and a forbidden +infinity becomes NaN, so the later check finds both.
void forbid_others(std::span<const uint32_t> mask, std::span<float> logits) {
  if (mask.empty()) return;
  if (mask.size() * 32 < logits.size()) {
    fail(ErrorCode::kInvalidRequest, "the mask has ", mask.size() * 32, " bits, expected one for each of ",
         logits.size(), " ids");
  }
  for (size_t begin = 0; begin < logits.size(); begin += 8) {
    const float* const addends = kAddends.of[mask[begin / 32] >> (begin % 32) & 0xff];
    if (logits.size() - begin >= 8) {
      for (size_t i = 0; i < 8; ++i) logits[begin + i] += addends[i];
    } else {
      for (size_t i = 0; begin + i < logits.size(); ++i) logits[begin + i] += addends[i];
    }
  }
}

}  // namespace

Sampler::Sampler(const SamplerConfig& config) : config_(config), drawn_(config.drawn), processors_(config_) {
  check_sampler_config(config);
}

Sampler::~Sampler() {
  if (mutex_.torn()) leave_torn_behind();
}

void Sampler::leave_torn_behind() {
  processors_.leave_torn_behind();
  row_.leave_torn_behind();
  leave_behind(processed_);
  leave_behind(candidates_);
  leave_behind(weights_);
  leave_behind(ranked_);
  mutex_.mend();
}

// splitmix64: the same stream on every platform, unlike the standard library's distributions.
double Sampler::uniform() {
  ++drawn_;
  uint64_t x = config_.seed + drawn_ * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history,
                        std::span<const uint32_t> mask) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  return choose(logits, history, mask);
}

int32_t Sampler::guess(std::span<const float> logits, std::span<const int32_t> history, int64_t ahead) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  const uint64_t drawn = drawn_;
  drawn_ += static_cast<uint64_t>(ahead);
  try {
    const int32_t id = choose(logits, history, {});
    drawn_ = drawn;
    return id;
  } catch (...) {
    drawn_ = drawn;
    throw;
  }
}

int32_t Sampler::choose(std::span<const float> logits, std::span<const int32_t> history,
                        std::span<const uint32_t> mask) {
  if (!choose_from(logits, history, mask)) return row_.likeliest();
  double sum = 0;
  for (const double weight : weights_) sum += weight;
  double draw = uniform() * sum;
  for (size_t i = 0; i < weights_.size(); ++i) {
    draw -= weights_[i];
    if (draw < 0) return candidates_[i].id;
  }
  return candidates_[weights_.size() - 1].id;
}

std::vector<std::pair<int32_t, double>> Sampler::distribution(std::span<const float> logits,
                                                              std::span<const int32_t> history) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  if (!choose_from(logits, history, {})) return {{row_.likeliest(), 1.0}};
  double sum = 0;
  for (const double weight : weights_) sum += weight;
  std::vector<std::pair<int32_t, double>> chances;
  for (size_t i = 0; i < weights_.size(); ++i) chances.emplace_back(candidates_[i].id, weights_[i] / sum);
  return chances;
}

// Reads the logits into row_. Returns false if the most likely token is to be chosen. Otherwise fills candidates_ and
// weights_.
bool Sampler::choose_from(std::span<const float> logits, std::span<const int32_t> history,
                          std::span<const uint32_t> mask) {
  if (mutex_.torn()) leave_torn_behind();
  if (config_.vocab_limit > 0) logits = logits.first(std::min(logits.size(), static_cast<size_t>(config_.vocab_limit)));
  if (logits.empty()) fail(ErrorCode::kInvalidRequest, "there are no logits to choose from");
  const bool processed = processors_.change_logits(history.size());
  if (processed || !mask.empty()) {
    processed_.assign(logits.begin(), logits.end());
    forbid_others(mask, processed_);
    if (processed) processors_.apply(processed_, history);
    logits = processed_;
  }
  row_.read(logits);
  if (row_.largest() == -std::numeric_limits<float>::infinity()) {
    fail(ErrorCode::kInvalidRequest, "no logit is finite",
         processed ? ": the suppressed ids, no_repeat_ngram and min_tokens together leave no token to choose" : "",
         mask.empty() ? "" : "; a grammar allows few tokens");
  }
  if (config_.temperature == 0) return false;
  select_candidates(logits.size());
  if (config_.typical_p < 1) keep_typical();
  return true;
}

// Fills candidates_ with every token that top-k, top-p and min-p keep, and weights_ with their e^(logit/T): in falling
// order if top-k is used, otherwise by id.
void Sampler::select_candidates(size_t count) {
  const double largest = static_cast<double>(row_.largest());
  const double inverse_temperature = std::min(1.0 / config_.temperature, 1e300);
  const auto weight_of = [&](float logit) {
    return std::exp((static_cast<double>(logit) - largest) * inverse_temperature);
  };
  const auto weigh = [&] {
    weights_.clear();
    double sum = 0;
    for (const LogitRow::Entry& c : candidates_) sum += weights_.emplace_back(weight_of(c.logit));
    return sum;
  };
  // Only these have a weight that counts: e^-60 of the largest is beyond the precision of the sum. And only these can
  // be as likely as min-p says.
  const double negligible = 60.0 * config_.temperature;
  const double reach_of_min_p = std::min(negligible, -std::log(config_.min_p) * config_.temperature);
  if (config_.top_k > 0 && static_cast<size_t>(config_.top_k) < count) {
    const auto top_k = static_cast<size_t>(config_.top_k);
    // Sorting 262,144 tokens takes 40 ms. The groups' peaks say where the first begin.
    const double floor = std::max(static_cast<double>(row_.rank_floor(top_k)), largest - negligible);
    row_.collect(static_cast<float>(floor), candidates_);
    const auto end = candidates_.begin() + static_cast<int64_t>(std::min(top_k, candidates_.size()));
    std::partial_sort(candidates_.begin(), end, candidates_.end(), LogitRow::ComesBefore());
    candidates_.erase(end, candidates_.end());
    const double sum = weigh();
    size_t keep = weights_.size();
    if (config_.top_p < 1) {  // the smallest set of likeliest tokens whose probability reaches top_p
      double covered = 0;
      for (keep = 0; keep < weights_.size() && covered < config_.top_p * sum; ++keep) covered += weights_[keep];
    }
    while (keep > 1 && weights_[keep - 1] < config_.min_p * weights_[0]) --keep;
    weights_.resize(std::max<size_t>(1, keep));
  } else if (config_.top_p < 1) {
    // The logits near the largest one are nearly always enough. If they are not, the range is widened until they are.
    const double wanted = config_.top_p * row_.exp_sum(inverse_temperature);
    for (double reach = 4.0 * std::min(1.0, config_.temperature);; reach *= 2) {
      row_.collect(static_cast<float>(largest - std::min(reach, negligible)), candidates_);
      if (weigh() >= wanted || reach >= negligible) break;
    }
    ranked_.clear();
    for (size_t i = 0; i < weights_.size(); ++i) {
      ranked_.push_back({-static_cast<double>(candidates_[i].logit), candidates_[i].id, weights_[i]});
    }
    const Ranked last = last_of_mass(wanted);
    keep_if([&](size_t i) {
      const Ranked own = {-static_cast<double>(candidates_[i].logit), candidates_[i].id, 0};
      return !(last < own) && weights_[i] >= config_.min_p;
    });
  } else {
    row_.collect(static_cast<float>(largest - reach_of_min_p), candidates_);
    weigh();
  }
}

template <typename Condition>
void Sampler::keep_if(Condition condition) {
  size_t kept = 0;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (!condition(i)) continue;
    candidates_[kept] = candidates_[i];
    weights_[kept++] = weights_[i];
  }
  weights_.resize(kept);
}

// The token of ranked_ with which, in their order, the sum of the weights reaches `mass`; else the last. The search
// halves the range each time, so it takes linear time in all.
Sampler::Ranked Sampler::last_of_mass(double mass) {
  auto begin = ranked_.begin(), end = ranked_.end();
  double covered = 0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end);
    double half = 0;
    for (auto at = begin; at != middle; ++at) half += at->weight;
    if (covered + half >= mass) {
      end = middle;
    } else {
      covered += half;
      begin = middle;
    }
  }
  return *begin;
}

// Keeps the tokens whose surprise is nearest to the mean surprise (the entropy), until their probabilities sum to
// typical_p (Meister et al. 2022, "Locally typical sampling"). The other filters come first.
void Sampler::keep_typical() {
  double sum = 0;
  for (const double weight : weights_) sum += weight;
  const double log_sum = std::log(sum);
  const auto surprise = [&](size_t i) {
    return log_sum -
           (static_cast<double>(candidates_[i].logit) - static_cast<double>(row_.largest())) / config_.temperature;
  };
  double entropy = 0;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] > 0) entropy += weights_[i] / sum * surprise(i);
  }
  ranked_.clear();
  for (size_t i = 0; i < weights_.size(); ++i) {
    ranked_.push_back({std::abs(surprise(i) - entropy), candidates_[i].id, weights_[i]});
  }
  const double farthest = last_of_mass(config_.typical_p * sum).rank;
  keep_if([&](size_t i) { return std::abs(surprise(i) - entropy) <= farthest; });
}

}  // namespace gemlet
