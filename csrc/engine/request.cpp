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

void Request::set_mask(int64_t position, TokenMask mask) {
  auto own = std::make_shared<const TokenMask>(std::move(mask));
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (reason_ != FinishReason::kNone) return;
  if (position != static_cast<int64_t>(generated_.size())) {
    fail(ErrorCode::kInvalidRequest, "the mask is for position ", position, ", but the text has ", generated_.size(),
         " tokens");
  }
  mask_.swap(own);
  mask_position_ = generated_.size();
  if (engine_event_) engine_event_->notify();
}

void Request::cancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (engine_event_) engine_event_->notify();
}

}  // namespace gemlet
