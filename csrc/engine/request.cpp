#include "engine/request.h"

#include <mutex>

#include "base/fork_mutex.h"

namespace gemlet {

Request::Output Request::take() {
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  Output output;
  output.ids.assign(generated_.begin() + static_cast<int64_t>(taken_), generated_.end());
  if (error_ && output.ids.empty() && values_.empty()) throw *error_;
  const bool was_full = !values_.empty() || output.ids.size() >= static_cast<size_t>(options.most_unread);
  taken_ = generated_.size();
  output.logprobs = std::move(logprobs_);
  logprobs_.clear();
  output.values = std::move(values_);
  values_.clear();
  if (!error_) output.reason = reason_;
  if (was_full && engine_event_) engine_event_->notify();
  return output;
}

Request::Times Request::times() const {
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  Times times = times_;
  const auto until = began_.value_or(RequestOptions::Clock::now());
  times.waiting = std::chrono::duration<double>(until - submitted_).count();
  return times;
}

void Request::set_mask(int64_t position, TokenMask mask, std::span<const int32_t> behind) {
  auto own = std::make_shared<const TokenMask>(std::move(mask));
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (reason_ != FinishReason::kNone) return;
  const auto chosen = static_cast<int64_t>(generated_.size()), guesses = static_cast<int64_t>(behind.size());
  if (position < guesses || position - guesses > chosen) {
    fail(ErrorCode::kInvalidRequest, "the mask is for position ", position, ", but the text has ", chosen,
         " tokens, and the mask comes after ", guesses, " draft tokens");
  }
  if (position < chosen) return;
  for (int64_t i = 0; i < guesses; ++i) {
    if (token_at(static_cast<size_t>(position - guesses + i)) != behind[static_cast<size_t>(i)]) return;
  }
  masks_[static_cast<size_t>(position)].swap(own);
  if (engine_event_) engine_event_->notify();
}

std::pair<int64_t, std::vector<int32_t>> Request::guessed() const {
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  std::vector<int32_t> ids;
  while (const std::optional<int32_t> id = token_at(generated_.size() + ids.size())) ids.push_back(*id);
  return {static_cast<int64_t>(generated_.size()), std::move(ids)};
}

void Request::guess(std::span<const int32_t> ids) {
  masks_.erase(masks_.upper_bound(generated_.size()), masks_.end());
  guessed_.assign(ids.begin(), ids.end());
  guessed_from_ = generated_.size();
}

void Request::add(int32_t id) {
  const size_t position = generated_.size();
  const bool is_right = token_at(position) == id;
  generated_.push_back(id);
  masks_.erase(position);
  if (is_right) return;
  masks_.clear();
  guessed_.clear();
}

std::optional<int32_t> Request::token_at(size_t position) const {
  if (position < generated_.size()) return generated_[position];
  const size_t guess = position - guessed_from_;
  return guess < guessed_.size() ? std::optional(guessed_[guess]) : std::nullopt;
}

void Request::cancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (engine_event_) engine_event_->notify();
}

}  // namespace gemlet
