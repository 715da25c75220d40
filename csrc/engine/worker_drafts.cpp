// The part of the worker that uses a draft model: it decides when the model proposes tokens, for which requests, and
// how many.
#include <algorithm>
#include <new>
#include <utility>

#include "engine/worker.h"

namespace gemlet {
namespace {

using Clock = RequestOptions::Clock;

// A request that lacks more tokens than this in the draft model's cache is prefilled before it gets drafts.
constexpr int64_t kNear = 8;
constexpr int64_t kPiece = 448;  // most tokens of one prefill pass of the draft model
// draft tokens of a trial, which measures whether drafts are accepted more often than before
constexpr int64_t kTried = 2;
constexpr double kCredit = 0.01;  // time for trials, as a share of the time of each step
// The prefill of the draft model may take at most this share of the time that its drafts are expected to save.
constexpr double kReadingPays = 0.5;

void follow(double& average, double value) { average = average == 0 ? value : 0.8 * average + 0.2 * value; }

}  // namespace

// Calls work(), which runs the draft model. Returns false if memory for its keys and values ran out. The requests then
// continue without draft tokens.
template <typename Work>
bool Worker::make_guesses(const Work& work) {
  try {
    work();
    return true;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kMemory) throw;
  } catch (const std::bad_alloc&) {
  }
  if (draft_model_->make_room()) return false;
  for (const auto& job : scheduler_.running()) draft_model_->end(*job);
  draft_model_->make_room();
  return false;
}

// Lets the draft model propose tokens if they gain more than `found`, the draft tokens that were looked up in the
// requests' own texts. Returns the number of draft tokens in the next forward pass.
int64_t Worker::draft_with_model(const Parts& parts, DraftChoice found) {
  const auto rows = static_cast<int64_t>(parts.size());
  const bool always = options_.drafts == DraftUse::kAlways;
  if (rows >= StepTimes::kMostRows) return found.count;
  std::vector<Job*> jobs, behind;
  std::vector<ModelDrafts> texts;
  bool none_loses = true;
  for (const Scheduler::Part& part : parts) {
    Job& job = *part.job;
    if (!job.drafts) continue;
    none_loses = none_loses && job.drafts->may_lose();
    const int64_t most =
        std::min({most_drafted(job), options_.most_of_drafter, job.is_writing() ? draft_model_->most(job) : 0});
    if (most <= 0) continue;
    if (draft_model_->behind(job) > kNear) {
      behind.push_back(&job);
      continue;
    }
    jobs.push_back(&job);
    texts.push_back({job.drafts.get(), most});
  }
  if (always) {
    for (Job* const job : behind) make_guesses([&] { draft_model_->read(*job, kPiece); });
    int64_t room = std::min(options_.most_drafted, StepTimes::kMostRows - rows);
    for (ModelDrafts& text : texts) room -= text.depth = std::min(text.most, room);
    return guess(texts, jobs);
  }
  if (!times_.knows_any(rows)) return found.count;
  const double step = times_.seconds(rows);
  double pass = pass_seconds_ / step;
  if (pass_seconds_ == 0) {
    pass = static_cast<double>(draft_model_->pass_bytes()) / static_cast<double>(model_->decode_bytes(0));
  }
  credit_ += kCredit * step;
  read_ahead(behind, rows, pass);
  if (!none_loses || texts.empty()) return found.count;
  const DraftChoice best = choose_depths(texts, rows, options_.most_drafted, pass, times_);
  if (best.count == 0 && found.count == 0 && times_.knows(rows)) {
    // Only a trial shows how often the draft tokens are accepted.
    const int64_t depth = std::min({kTried, texts[0].most, options_.most_drafted, StepTimes::kMostRows - rows});
    const double price = step * (pass * static_cast<double>(depth) + times_.cost(rows + depth, rows) - 1);
    if (depth <= 0 || credit_ < price) return 0;
    credit_ -= price;
    texts[0].depth = depth;
  } else if (best.gain <= found.gain) {
    return found.count;
  }
  for (const Scheduler::Part& part : parts) {
    if (part.job->drafts) part.job->drafts->take(0);
  }
  return guess(texts, jobs);
}

// Prefills the draft model for the requests in `behind`, where the expected gain pays for it.
void Worker::read_ahead(const std::vector<Job*>& behind, int64_t rows, double pass) {
  const double step = times_.seconds(rows);
  const double token = read_seconds_ > 0 ? read_seconds_ : 0.125 * pass * step;
  const double gain = gain_alone(model_chance_, pass, times_);
  for (Job* const job : behind) {
    const RequestOptions& options = job->request->options;
    const int64_t missing = draft_model_->behind(*job) - 1;
    const auto written = static_cast<int64_t>(job->ids.size() - options.prompt.size());
    const double price = token * static_cast<double>(missing);
    const double saved = gain / (1 + gain) * step * static_cast<double>(options.max_tokens - written);
    const bool pays = price < kReadingPays * saved;
    if (!pays && credit_ < price) continue;
    if (!pays) credit_ -= price;
    // The other requests must not wait longer than one step.
    const int64_t most = rows > 1 ? std::clamp<int64_t>(static_cast<int64_t>(step / token), 16, kPiece) : kPiece;
    const Clock::time_point start = Clock::now();
    const int64_t count = std::min(missing, most);
    if (!make_guesses([&] { draft_model_->read(*job, count); })) return;
    const double seconds = seconds_since(start);
    read_apart_ += seconds;
    if (count >= 16) follow(read_seconds_, seconds / static_cast<double>(count));
  }
}

int64_t Worker::guess(std::span<const ModelDrafts> chosen, const std::vector<Job*>& jobs) {
  std::vector<DraftModel::Ask> asks;
  int64_t deepest = 0, count = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    if (chosen[i].depth > 0) asks.push_back({jobs[i], chosen[i].depth});
    deepest = std::max(deepest, chosen[i].depth);
  }
  if (asks.empty()) return 0;
  const Clock::time_point start = Clock::now();
  if (!make_guesses([&] { draft_model_->guess(asks); })) return 0;
  model_seconds_ += seconds_since(start);
  follow(pass_seconds_, seconds_since(start) / static_cast<double>(deepest));
  for (DraftModel::Ask& ask : asks) {
    if (options_.rehearse) {
      for (size_t i = 0; i < ask.ids.size(); ++i) {
        ask.ids[i] = options_.rehearse(static_cast<int64_t>(ask.job->ids.size() + i), ask.ids[i]);
      }
    }
    count += static_cast<int64_t>(ask.ids.size());
    ask.job->drafts->offer({std::move(ask.ids), kModelKind});
  }
  return count;
}

}  // namespace gemlet
