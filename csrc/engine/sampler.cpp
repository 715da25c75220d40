#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/error.h"

namespace gemlet {

Sampler::Sampler(const SamplerConfig& config) : config_(config), state_(config.seed) {
  const auto check = [](bool good, const char* name, double value, const char* expected) {
    if (!good) fail(ErrorCode::kInvalidRequest, name, " is ", value, ", expected ", expected);
  };
  check(std::isfinite(config.temperature) && config.temperature >= 0, "temperature", config.temperature, "a number >= 0");
  check(config.top_k >= 0, "top_k", static_cast<double>(config.top_k), "0 (all) or more");
  check(config.top_p > 0 && config.top_p <= 1, "top_p", config.top_p, "a number in (0, 1]");
  check(config.min_p >= 0 && config.min_p < 1, "min_p", config.min_p, "a number in [0, 1)");
  check(std::isfinite(config.repetition_penalty) && config.repetition_penalty > 0, "repetition_penalty",
        config.repetition_penalty, "a number > 0");
  check(config.vocab_limit >= 0, "vocab_limit", static_cast<double>(config.vocab_limit), "0 or more");
}

// splitmix64: the same stream on every platform, unlike the standard library's distributions.
double Sampler::uniform() {
  state_ += 0x9e3779b97f4a7c15u;
  uint64_t x = state_;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

void Sampler::penalize(std::span<const int32_t> history) {
  const float penalty = static_cast<float>(config_.repetition_penalty);
  std::unordered_set<int32_t> seen;
  for (const int32_t id : history) {
    if (id < 0 || static_cast<size_t>(id) >= logits_.size() || !seen.insert(id).second) continue;
    float& logit = logits_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

// Fills candidates_ in falling order with every token that top-k and top-p can keep.
void Sampler::select_candidates(float largest) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  const size_t top_k = config_.top_k > 0 ? static_cast<size_t>(config_.top_k) : logits_.size();
  const double inverse_temperature = 1.0 / config_.temperature;
  // The whole vocabulary's weight is needed for top-p only where top-k does not cut first.
  double total = 0;
  if (top_k >= logits_.size() && config_.top_p < 1) {
    for (const float logit : logits_) total += std::exp((static_cast<double>(logit) - largest) * inverse_temperature);
  }
  // Sorting 262,144 tokens takes 20 ms; those within a few units of the largest are nearly always enough. Widen until they are.
  for (double reach = 8 * config_.temperature;; reach *= 4) {
    candidates_.clear();
    const float floor = static_cast<float>(largest - reach);
    const bool everything = reach > 1e4 || !(floor > -3e38f);
    for (size_t id = 0; id < logits_.size(); ++id) {
      if (logits_[id] >= floor || (everything && logits_[id] > -INFINITY)) {
        candidates_.push_back({logits_[id], static_cast<int32_t>(id)});
      }
    }
    bool enough = everything || candidates_.size() >= top_k;
    if (!enough && total > 0) {
      double covered = 0;
      for (const Candidate& c : candidates_) covered += std::exp((static_cast<double>(c.logit) - largest) * inverse_temperature);
      enough = covered >= config_.top_p * total;
    }
    if (enough) break;
  }
  if (candidates_.size() > top_k) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(top_k), candidates_.end(), better);
    candidates_.resize(top_k);
  }
  std::sort(candidates_.begin(), candidates_.end(), better);

  weights_.clear();
  double sum = 0;
  for (const Candidate& c : candidates_) {
    weights_.push_back(std::exp((static_cast<double>(c.logit) - largest) * inverse_temperature));
    sum += weights_.back();
  }
  if (total > 0) sum = total;
  // top-p: the smallest set of likeliest tokens whose probability reaches top_p.
  size_t keep = weights_.size();
  if (config_.top_p < 1) {
    double covered = 0;
    for (keep = 0; keep < weights_.size() && covered < config_.top_p * sum; ++keep) covered += weights_[keep];
  }
  // min-p: relative to the likeliest token, whose weight comes first.
  while (keep > 1 && weights_[keep - 1] < config_.min_p * weights_[0]) --keep;
  weights_.resize(std::max<size_t>(1, keep));
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history) {
  const size_t size = config_.vocab_limit > 0 ? std::min(logits.size(), static_cast<size_t>(config_.vocab_limit)) : logits.size();
  if (size == 0) fail(ErrorCode::kInvalidRequest, "there are no logits to choose from");
  logits_.assign(logits.begin(), logits.begin() + static_cast<int64_t>(size));
  if (config_.repetition_penalty != 1.0) penalize(history);
  size_t best = 0;
  bool any = false;
  for (size_t id = 0; id < size; ++id) {
    if (std::isfinite(logits_[id])) {
      if (!any || logits_[id] > logits_[best]) best = id;
      any = true;
    } else if (!(logits_[id] < 0)) {
      fail(ErrorCode::kInvalidRequest, "the logit of token ", id, " is ", logits_[id],
           ": the computation overflowed; the weights may be damaged");
    }
  }
  if (!any) fail(ErrorCode::kInvalidRequest, "no logit is finite");
  if (config_.temperature == 0) return static_cast<int32_t>(best);

  select_candidates(logits_[best]);
  double sum = 0;
  for (const double weight : weights_) sum += weight;
  double draw = uniform() * sum;
  for (size_t i = 0; i < weights_.size(); ++i) {
    draw -= weights_[i];
    if (draw < 0) return candidates_[i].id;
  }
  return candidates_[weights_.size() - 1].id;
}

}  // namespace gemlet
