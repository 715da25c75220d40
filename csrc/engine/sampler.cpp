#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <unordered_set>

#include "base/error.h"

namespace gemlet {
namespace {

// Passes over the vocabulary go this many logits at a time, so that plain loops vectorize.
constexpr size_t kLanes = 32;

}  // namespace

Sampler::Sampler(const SamplerConfig& config) : config_(config), drawn_(config.drawn) {
  const auto check = [](bool good, const char* name, double value, const char* expected) {
    if (!good) fail(ErrorCode::kInvalidRequest, name, " is ", value, ", expected ", expected);
  };
  check(std::isfinite(config.temperature) && config.temperature >= 0, "temperature", config.temperature,
        "a number >= 0");
  check(config.top_k >= 0, "top_k", static_cast<double>(config.top_k), "0 (all) or more");
  check(config.top_p > 0 && config.top_p <= 1, "top_p", config.top_p, "a number in (0, 1]");
  check(config.min_p >= 0 && config.min_p < 1, "min_p", config.min_p, "a number in [0, 1)");
  check(std::isfinite(config.repetition_penalty) && config.repetition_penalty > 0, "repetition_penalty",
        config.repetition_penalty, "a number > 0");
  check(config.vocab_limit >= 0, "vocab_limit", static_cast<double>(config.vocab_limit), "0 or more");
  for (const int32_t id : config.suppressed) check(id >= 0, "a suppressed id", static_cast<double>(id), "0 or more");
}

Sampler::~Sampler() {
  if (mutex_.torn()) leave_torn_behind();
}

void Sampler::leave_torn_behind() {
  leave_behind(penalized_);
  leave_behind(candidates_);
  leave_behind(weights_);
  leave_behind(group_peaks_);
  leave_behind(ranked_peaks_);
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

void Sampler::penalize(std::span<const int32_t> history) {
  const float penalty = static_cast<float>(config_.repetition_penalty);
  std::unordered_set<int32_t> seen;
  for (const int32_t id : history) {
    if (id < 0 || static_cast<size_t>(id) >= penalized_.size() || !seen.insert(id).second) continue;
    float& logit = penalized_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

// Fills candidates_ in falling order with every token that top-k, top-p and min-p keep, and weights_ with their
// e^(logit/T).
void Sampler::select_candidates(std::span<const float> logits, float largest) {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  };
  const double inverse_temperature = 1.0 / config_.temperature;
  const auto weight_of = [&](float logit) {
    return std::exp((static_cast<double>(logit) - static_cast<double>(largest)) * inverse_temperature);
  };
  const size_t top_k = config_.top_k > 0 ? static_cast<size_t>(config_.top_k) : logits.size();
  // Only these can weigh in at all: e^-60 of the largest is beyond the precision of the sum.
  const double negligible = 60.0 * config_.temperature;
  // Sorting 262,144 tokens takes 40 ms. With top-k the groups' peaks say where its logits begin; else those near the
  // largest are nearly always enough: widen the reach until they are.
  const bool by_rank = top_k < logits.size();
  double sum = 0;
  if (!by_rank) {
    for (const float logit : logits) {
      if (logit >= largest - negligible) sum += weight_of(logit);
    }
  }
  if (!by_rank && config_.top_p == 1) {  // nothing depends on the order
    collect(logits, static_cast<float>(largest + std::max(-negligible, std::log(config_.min_p) * config_.temperature)));
    weights_.clear();
    for (const Candidate& c : candidates_) weights_.push_back(weight_of(c.logit));
    return;
  }
  if (by_rank) {
    collect(logits, static_cast<float>(std::max(static_cast<double>(rank_floor(top_k)), largest - negligible)));
  } else {
    for (double reach = 4.0 * std::min(1.0, config_.temperature);; reach *= 2) {
      collect(logits, static_cast<float>(largest - std::min(reach, negligible)));
      if (reach >= negligible) break;
      double covered = 0;
      for (const Candidate& c : candidates_) covered += weight_of(c.logit);
      if (covered >= config_.top_p * sum) break;
    }
  }
  if (candidates_.size() > top_k) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(top_k), candidates_.end(), better);
    candidates_.resize(top_k);
  }
  std::sort(candidates_.begin(), candidates_.end(), better);

  weights_.clear();
  for (const Candidate& c : candidates_) {
    weights_.push_back(weight_of(c.logit));
    if (by_rank) sum += weights_.back();
  }
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

// A number that at least `count` logits reach: the peaks of `count` groups.
float Sampler::rank_floor(size_t count) {
  if (count > group_peaks_.size()) return -std::numeric_limits<float>::infinity();
  ranked_peaks_ = group_peaks_;
  const auto at = ranked_peaks_.begin() + static_cast<int64_t>(count - 1);
  std::nth_element(ranked_peaks_.begin(), at, ranked_peaks_.end(), std::greater<>());
  return *at;
}

// candidates_ = every token with a logit of at least `floor`. Most groups hold none.
void Sampler::collect(std::span<const float> logits, float floor) {
  candidates_.clear();
  for (size_t group = 0; group < group_peaks_.size(); ++group) {
    if (group_peaks_[group] < floor) continue;
    for (size_t id = group * kLanes; id < std::min(logits.size(), (group + 1) * kLanes); ++id) {
      if (logits[id] >= floor) candidates_.push_back({logits[id], static_cast<int32_t>(id)});
    }
  }
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> history) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  if (mutex_.torn()) leave_torn_behind();
  if (config_.vocab_limit > 0) logits = logits.first(std::min(logits.size(), static_cast<size_t>(config_.vocab_limit)));
  if (logits.empty()) fail(ErrorCode::kInvalidRequest, "there are no logits to choose from");
  if (config_.repetition_penalty != 1.0 || !config_.suppressed.empty()) {
    penalized_.assign(logits.begin(), logits.end());
    if (config_.repetition_penalty != 1.0) penalize(history);
    for (const int32_t id : config_.suppressed) {
      const auto at = static_cast<size_t>(id);
      if (at < penalized_.size()) penalized_[at] = -std::numeric_limits<float>::infinity();
    }
    logits = penalized_;
  }
  const float largest = check_and_max(logits);
  if (config_.temperature == 0) {
    const auto group = std::find(group_peaks_.begin(), group_peaks_.end(), largest) - group_peaks_.begin();
    const auto from = logits.begin() + group * static_cast<int64_t>(kLanes);
    return static_cast<int32_t>(std::find(from, logits.end(), largest) - logits.begin());
  }
  select_candidates(logits, largest);
  double sum = 0;
  for (const double weight : weights_) sum += weight;
  double draw = uniform() * sum;
  for (size_t i = 0; i < weights_.size(); ++i) {
    draw -= weights_[i];
    if (draw < 0) return candidates_[i].id;
  }
  return candidates_[weights_.size() - 1].id;
}

// The largest logit, and that of each group of kLanes in group_peaks_. NaN or +infinity means that the computation
// overflowed; -infinity only forbids a token.
float Sampler::check_and_max(std::span<const float> logits) {
  constexpr size_t kWidth = 8;
  float bad[kWidth] = {};  // stays 0 unless a NaN passes
  group_peaks_.resize((logits.size() + kLanes - 1) / kLanes);
  for (size_t group = 0; group < group_peaks_.size(); ++group) {
    const float* const at = logits.data() + group * kLanes;
    const size_t count = std::min(kLanes, logits.size() - group * kLanes);
    float peak[kWidth];
    std::fill_n(peak, kWidth, -std::numeric_limits<float>::infinity());
    const auto look = [&](size_t lane, float logit) {
      peak[lane] = logit > peak[lane] ? logit : peak[lane];
      bad[lane] += logit == logit ? 0.0f : 1.0f;
    };
    if (count == kLanes) {
      for (size_t i = 0; i < kLanes; i += kWidth) {
        for (size_t lane = 0; lane < kWidth; ++lane) look(lane, at[i + lane]);
      }
    } else {
      for (size_t i = 0; i < count; ++i) look(i % kWidth, at[i]);
    }
    for (size_t width = kWidth / 2; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) peak[i] = std::max(peak[i], peak[i + width]);
    }
    group_peaks_[group] = peak[0];
  }
  const float largest = *std::max_element(group_peaks_.begin(), group_peaks_.end());
  if (largest == std::numeric_limits<float>::infinity() ||
      std::any_of(bad, bad + kWidth, [](float b) { return b != 0; })) {
    fail(ErrorCode::kTensor, "the logits hold NaN or infinity: the computation overflowed; the weights may be damaged");
  }
  if (largest == -std::numeric_limits<float>::infinity()) fail(ErrorCode::kInvalidRequest, "no logit is finite");
  return largest;
}

}  // namespace gemlet
