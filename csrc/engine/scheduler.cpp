#include "engine/scheduler.h"

#include <algorithm>

namespace gemlet {
namespace {

constexpr int64_t kLeastPiece = 16;  // the number of rows of a tile
constexpr int64_t kMostWaiters = 4;  // at most this many waiting requests count for each decoding one
constexpr int64_t kOldestTurn = 4;   // the prompt that has waited longest comes first at least once in this many steps
constexpr int64_t kQuickTurn = 16;   // at most once in this many steps, the last step of a prompt reads nothing else

}  // namespace

void Scheduler::add(std::unique_ptr<Job> job) {
  const auto place = std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const auto& other) { return other->priority() < job->priority(); });
  waiting_.insert(place, std::move(job));
}

void Scheduler::put_back(Job* job) {
  std::unique_ptr<Job> owned = remove(job);
  const auto place = std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const auto& other) { return other->priority() <= owned->priority(); });
  waiting_.insert(place, std::move(owned));
}

std::unique_ptr<Job> Scheduler::remove(Job* job) {
  const auto take_from = [&](auto& jobs) {
    const auto found = std::find_if(jobs.begin(), jobs.end(), [&](const auto& one) { return one.get() == job; });
    if (found == jobs.end()) return std::unique_ptr<Job>();
    std::unique_ptr<Job> taken = std::move(*found);
    jobs.erase(found);
    return taken;
  };
  std::unique_ptr<Job> taken = take_from(running_);
  return taken ? std::move(taken) : take_from(waiting_);
}

Job* Scheduler::next_waiting() const {
  const auto next =
      std::find_if(waiting_.begin(), waiting_.end(), [](const auto& job) { return job->is_ready() && !job->paused; });
  return next == waiting_.end() ? nullptr : next->get();
}

void Scheduler::begin(Job* job) { running_.push_back(remove(job)); }

std::vector<Scheduler::Part> Scheduler::whole_texts() const {
  std::vector<Part> parts;
  int64_t rows = 0;
  for (const auto& job : running_) {
    rows += job->remaining();
    if (!parts.empty() && rows > limits_.rows) break;
    parts.push_back({job.get(), job->remaining()});
  }
  return parts;
}

std::vector<Scheduler::Part> Scheduler::plan(const StepTimes& times) {
  if (limits_.whole) return whole_texts();
  std::vector<Part> parts;
  std::vector<Job*> readers;
  for (const auto& job : running_) {
    if (job->waits_for_reader()) continue;
    if (job->is_writing()) {
      parts.push_back({job.get(), 1});
    } else {
      readers.push_back(job.get());
    }
  }
  if (readers.empty()) return parts;
  const int64_t writers = static_cast<int64_t>(parts.size()), room = limits_.rows - writers;
  const auto waiters = static_cast<int64_t>(readers.size() + waiting_.size());
  int64_t wanted = writers > 0 ? std::min(room, times.prompt_tokens(writers)) : room;
  // Some more tokens may be read if that finishes the prompt, because they are not worth another step.
  int64_t most = std::min(room, 2 * wanted);
  // The more requests decode in a step, the less time each of them costs.
  const bool more_read = waiters > writers;
  if (more_read && writers > 0) {
    const int64_t each = std::clamp<int64_t>(waiters / writers, 2, kMostWaiters);
    wanted = most = std::min(room, wanted * each);
  }

  Job* const oldest = *std::min_element(readers.begin(), readers.end(), [](const Job* a, const Job* b) {
    return a->priority() != b->priority() ? a->priority() > b->priority() : a->number < b->number;
  });
  std::stable_sort(readers.begin(), readers.end(), [](const Job* a, const Job* b) {
    return a->priority() != b->priority() ? a->priority() > b->priority() : a->remaining() < b->remaining();
  });
  if (oldest->number != oldest_) passed_over_ = 0;
  oldest_ = oldest->number;
  if (passed_over_ >= kOldestTurn - 1) {
    readers.erase(std::find(readers.begin(), readers.end(), oldest));
    readers.insert(readers.begin(), oldest);
  }
  ++passed_over_;
  // A quick step reads the end of a prompt and no piece of another prompt, so that it takes less time.
  const bool may_be_quick = quick_in_ == 0 && !more_read;
  quick_in_ = std::max<int64_t>(0, quick_in_ - 1);
  bool has_end = false;
  int64_t read = 0;
  for (Job* const job : readers) {
    const int64_t all = job->most_tokens();
    int64_t tokens = all <= most - read ? all : std::min(all, wanted - read);
    // Pieces consist of whole tiles, except the last one of a prompt.
    if (tokens < all && read > 0 && tokens < kLeastPiece) tokens = 0;
    if (tokens > 0 && tokens < all && has_end && may_be_quick) {
      tokens = 0;
      quick_in_ = kQuickTurn - 1;
    }
    tokens = tokens > 0 ? job->whole(tokens) : 0;
    if (tokens == 0 &&
        read == 0) {  // a span is read as a whole, if necessary in a separate step, although others wait for it
      tokens = job->least_tokens();
    }
    if (tokens == 0) continue;
    if (job == oldest) passed_over_ = 0;
    if (tokens > room) return {{job, tokens}};
    has_end |= tokens == job->remaining();
    read += tokens;
    parts.push_back({job, tokens});
  }
  return parts;
}

Job* Scheduler::slow_reader(RequestOptions::Clock::time_point now) const {
  Job* found = nullptr;
  for (const auto& job : running_) {
    if (job->has_slow_reader(now) && (!found || *job->slow_since < *found->slow_since)) found = job.get();
  }
  return found;
}

Job* Scheduler::victim() const {
  if (Job* const slow = slow_reader(RequestOptions::Clock::now())) return slow;
  if (running_.size() < 2) return nullptr;
  return std::min_element(running_.begin(), running_.end(),
                          [](const auto& a, const auto& b) {
                            return a->priority() != b->priority() ? a->priority() < b->priority()
                                                                  : a->number > b->number;
                          })
      ->get();
}

}  // namespace gemlet
