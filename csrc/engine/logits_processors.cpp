#include "engine/logits_processors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/fork_mutex.h"

namespace gemlet {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr double kMostPenalty = 1e30;  // with this penalty, a logit is still a float

void forbid(std::span<float> logits, std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] = kForbidden;
  }
}

}  // namespace

bool LogitsProcessors::may_end(size_t tokens) const {
  const auto generated = static_cast<int64_t>(tokens) - config_.prompt_tokens;
  return generated >= config_.min_tokens || config_.end_ids.empty();
}

bool LogitsProcessors::change_logits(size_t tokens) const {
  return !config_.logit_bias.empty() || config_.repetition_penalty != 1 || config_.frequency_penalty != 0 ||
         config_.presence_penalty != 0 || config_.dry.multiplier > 0 || config_.no_repeat_ngram > 0 ||
         !config_.suppressed.empty() || !may_end(tokens);
}

void LogitsProcessors::apply(std::span<float> logits, std::span<const int32_t> history) {
  for (const auto& [id, bias] : config_.logit_bias) {
    if (static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] += bias;
  }
  if (config_.repetition_penalty != 1) penalize_repetition(logits, history);
  if (config_.frequency_penalty != 0 || config_.presence_penalty != 0) {
    penalize_generated(logits, history.subspan(std::min(history.size(), static_cast<size_t>(config_.prompt_tokens))));
  }
  if (config_.dry.multiplier > 0 || config_.no_repeat_ngram > 0) repeated_lengths(history, repeated_);
  if (config_.dry.multiplier > 0) penalize_long_repetition(logits, history);
  if (config_.no_repeat_ngram > 0) forbid_repeated_ngrams(logits, history);
  if (!may_end(history.size())) forbid(logits, config_.end_ids);
  forbid(logits, config_.suppressed);
}

void LogitsProcessors::leave_torn_behind() {
  leave_behind(counts_);
  leave_behind(counted_);
  leave_behind(repeated_);
  leave_behind(longest_ids_);
  leave_behind(longest_lengths_);
}

// Counts how often each of the ids occurs. The caller sets the counts to 0 again.
void LogitsProcessors::count(std::span<const int32_t> ids, size_t vocab) {
  counts_.resize(vocab);
  counted_.clear();
  counted_.reserve(std::min(ids.size(), vocab));  // nothing below throws and leaves counts behind
  for (const int32_t id : ids) {
    if (static_cast<size_t>(id) < vocab && counts_[static_cast<size_t>(id)]++ == 0) counted_.push_back(id);
  }
}

void LogitsProcessors::penalize_repetition(std::span<float> logits, std::span<const int32_t> history) {
  const float penalty = static_cast<float>(config_.repetition_penalty);
  count(history, logits.size());
  for (const int32_t id : counted_) {
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
    counts_[static_cast<size_t>(id)] = 0;
  }
}

void LogitsProcessors::penalize_generated(std::span<float> logits, std::span<const int32_t> generated) {
  const float frequency = static_cast<float>(config_.frequency_penalty);
  const float presence = static_cast<float>(config_.presence_penalty);
  count(generated, logits.size());
  for (const int32_t id : counted_) {
    float& logit = logits[static_cast<size_t>(id)];
    logit -= frequency * static_cast<float>(counts_[static_cast<size_t>(id)]);
    logit -= presence;
    counts_[static_cast<size_t>(id)] = 0;
  }
}

// A token that followed an earlier occurrence of the text's end would make the repetition longer by one.
void LogitsProcessors::penalize_long_repetition(std::span<float> logits, std::span<const int32_t> history) {
  const DryConfig& dry = config_.dry;
  const auto allowed = static_cast<size_t>(dry.allowed_length);
  const size_t reach = dry.breakers ? dry.breakers->tokens_after_last(history) : history.size();
  if (reach < allowed) return;
  longest_lengths_.resize(logits.size());
  longest_ids_.clear();
  longest_ids_.reserve(std::min(history.size(), logits.size()));
  for (size_t shift = 1; shift < history.size(); ++shift) {
    const int32_t next = history[history.size() - shift];
    const size_t length = std::min(repeated_[shift], reach);
    if (length < allowed || static_cast<size_t>(next) >= logits.size()) continue;
    size_t& longest = longest_lengths_[static_cast<size_t>(next)];
    if (longest == 0) longest_ids_.push_back(next);
    longest = std::max(longest, length);
  }
  for (const int32_t id : longest_ids_) {
    size_t& longest = longest_lengths_[static_cast<size_t>(id)];
    const double penalty = dry.multiplier * std::pow(dry.base, static_cast<double>(longest - allowed));
    longest = 0;
    if (dry.breakers && dry.breakers->is_breaker(id)) continue;
    logits[static_cast<size_t>(id)] -= static_cast<float>(std::min(penalty, kMostPenalty));
  }
}

void LogitsProcessors::forbid_repeated_ngrams(std::span<float> logits, std::span<const int32_t> history) const {
  const auto before = static_cast<size_t>(config_.no_repeat_ngram - 1);
  for (size_t shift = 1; shift <= history.size(); ++shift) {
    const size_t at = history.size() - shift;
    if (repeated_[shift] >= before) forbid(logits, history.subspan(at, 1));
  }
}

}  // namespace gemlet
