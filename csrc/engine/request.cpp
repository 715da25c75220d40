#include "engine/request.h"

#include <mutex>

#include "base/fork_mutex.h"

namespace gemlet {

Request::Output Request::take() {
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  Output output;
  output.ids.assign(generated_.begin() + static_cast<int64_t>(taken_), generated_.end());
  if (error_ && output.ids.empty()) throw *error_;
  const bool was_full = output.ids.size() >= static_cast<size_t>(options.most_unread);
  taken_ = generated_.size();
  if (!error_) output.reason = reason_;
  if (was_full && engine_event_) engine_event_->notify();
  return output;
}

void Request::cancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  if (engine_event_) engine_event_->notify();
}

}  // namespace gemlet
