#include "engine/scheduler.h"

#include <algorithm>

namespace gemlet {
namespace {

// Prompts share a step in pieces of whole tiles, but for the last piece of each.
constexpr int64_t kLeastPiece = 16;

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

std::vector<Scheduler::Part> Scheduler::plan(int64_t prompt_tokens) const {
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
  const int64_t writers = static_cast<int64_t>(parts.size());
  int64_t left = limits_.rows - writers;
  if (writers > 0) left = std::min(left, prompt_tokens);
  if (readers.empty() || left <= 0) return parts;

  Job* const oldest = *std::min_element(readers.begin(), readers.end(), [](const Job* a, const Job* b) {
    return a->priority() != b->priority() ? a->priority() > b->priority() : a->number < b->number;
  });
  std::stable_sort(readers.begin(), readers.end(), [](const Job* a, const Job* b) {
    return a->priority() != b->priority() ? a->priority() > b->priority() : a->remaining() < b->remaining();
  });
  int64_t share = std::min(oldest->most_tokens(), std::max(left / 4, std::min(left, kLeastPiece)));
  share = oldest->whole(share);
  if (share == 0) {  // a span goes through as a whole, though others wait longer for that, if need be alone
    share = oldest->least_tokens();
    if (writers + share > limits_.rows) return {{oldest, share}};
  }
  left = std::max<int64_t>(left - share, 0);
  for (Job* const job : readers) {
    const int64_t own = job == oldest ? share : 0;
    const int64_t tokens = job->whole(own + std::min(left, std::max<int64_t>(job->most_tokens() - own, 0)));
    left -= tokens - own;
    if (tokens > 0) parts.push_back({job, tokens});
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
