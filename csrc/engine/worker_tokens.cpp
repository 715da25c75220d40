// The part of the worker that turns the results of a pass into tokens and rows for the readers.
#include <algorithm>
#include <new>
#include <utility>

#include "engine/worker.h"

namespace gemlet {
namespace {

using Clock = RequestOptions::Clock;
using Lock = std::lock_guard<std::mutex>;

std::span<const uint32_t> bits_of(const std::shared_ptr<const TokenMask>& mask) {
  return mask ? std::span(*mask) : std::span<const uint32_t>();
}

}  // namespace

int64_t Worker::row_width() const {
  const ModelConfig& config = model_->config();
  return config.bidirectional ? config.embedding_size() : config.vocab_size;
}

// Calls next(), which returns whether the job has ended.
template <typename Next>
void Worker::hand_out(Job* job, Ends& ends, Next next) {
  try {
    const FinishReason reason = next();
    if (reason != FinishReason::kNone) ends.ended.emplace_back(job, reason);
  } catch (const Error& error) {
    ends.failed.emplace_back(job, error);
  } catch (const std::bad_alloc&) {
    ends.failed.emplace_back(job, Error(ErrorCode::kMemory, "there is no memory for what a request computed"));
  }
}

// Chooses the next tokens of several requests on the threads of the pool. Each token is chosen from the request's first
// row of logits. next_token() handles a request whose mask is missing, or for which no token can be chosen.
void Worker::choose_together(const Parts& parts) {
  if (parts.size() < 2) return;
  struct Text {
    Job* job;
    std::span<const float> logits;
    std::shared_ptr<const TokenMask> mask;
  };
  std::vector<Text> texts;
  for (size_t i = 0; i < parts.size(); ++i) {
    Job* const job = parts[i].job;
    if (rows_[i] < 0 || job->wanted() != Wanted::kText) continue;
    const bool masked = job->request->options.masked;
    std::shared_ptr<const TokenMask> mask = masked ? mask_of(*job) : nullptr;
    if (masked && !mask) continue;
    const auto width = static_cast<size_t>(row_width());
    texts.push_back({job, {outputs_.as<float>() + static_cast<size_t>(rows_[i]) * width, width}, std::move(mask)});
  }
  if (texts.size() < 2 || model_->busy()) return;  // others, such as the towers, may compute now
  const auto choose = [](const void* context, int64_t index) noexcept {
    const Text& text = (*static_cast<const std::vector<Text>*>(context))[static_cast<size_t>(index)];
    try {
      text.job->chosen = text.job->sampler->sample(text.logits, text.job->ids, bits_of(text.mask));
    } catch (const Error&) {
    } catch (const std::bad_alloc&) {
    }
  };
  const auto count = static_cast<int64_t>(texts.size());
  try {
    model_->run(count, [&](Backend& backend) { backend.parallel(count, choose, &texts); });
  } catch (const Error&) {  // the model was closed
  }
}

// Hands out what the pass computed to the readers.
void Worker::hand_out(const Parts& parts) {
  choose_together(parts);
  Ends ends;
  for (size_t i = 0; i < parts.size(); ++i) {
    Job* const job = parts[i].job;
    Request& request = *job->request;
    const auto keep = [&] {  // the tokens that are certain
      if (job->wanted() == Wanted::kEmbedding || !job->held.empty()) return;
      job->kept_blocks = cache.keep(root_of(request), job->key, job->kv, job->kept_blocks, false);
    };
    if (request.generated_.empty()) request.read_tokens_.store(job->kv.length(), std::memory_order_relaxed);
    if (rows_[i] < 0) {
      keep();
      const Lock lock(fork_safe_mutex());
      count_step(request, false);
      continue;
    }
    const float* const values = outputs_.as<float>() + rows_[i] * row_width();
    keep_states(*job, rows_[i]);
    hand_out(job, ends, [&] {
      const FinishReason reason =
          job->wanted() == Wanted::kText ? next_tokens(*job, values, false) : next_rows(*job, values, parts[i].tokens);
      keep();
      return reason;
    });
  }
  notify(parts);
  end(ends);
}

// Notifies each reader once, when all results of the step are there. Readers that show the progress of a prompt are
// notified too.
void Worker::notify(const Parts& parts) {
  std::vector<Event*> told;
  for (const Scheduler::Part& part : parts) {
    Event* const news = part.job->request->options.news.get();
    if (std::find(told.begin(), told.end(), news) != told.end()) continue;
    told.push_back(news);
    news->notify();
  }
}

// Keeps the model's hidden states for an assistant, from row `row` of the last pass on.
void Worker::keep_states(Job& job, int64_t row) const {
  if (!draft_model_ || !draft_model_->takes_states() || job.wanted() != Wanted::kText) return;
  const int64_t width = model_->config().hidden_size;
  const float* const first = states_.data() + row * width;
  job.draft_state.states.assign(first, first + (1 + job.drafted()) * width);
}

// Chooses the next tokens of requests whose missing mask was set meanwhile.
void Worker::choose_held() {
  Ends ends;
  for (const auto& job : scheduler_.running()) {
    if (job->held.empty() || !mask_of(*job)) continue;
    const std::vector<float> logits = std::exchange(job->held, {});
    hand_out(job.get(), ends, [&] { return next_tokens(*job, logits.data(), true); });
    job->request->options.news->notify();
  }
  end(ends);
}

// The mask of the next token; null if the reader has not set it yet.
std::shared_ptr<const TokenMask> Worker::mask_of(const Job& job) {
  const Lock lock(fork_safe_mutex());
  const Request& request = *job.request;
  const auto found = request.masks_.find(request.generated_.size());
  return found == request.masks_.end() ? nullptr : found->second;
}

// Adds the time of this step to the request's times. The caller holds fork_safe_mutex(). `wrote`: the request got a
// token.
void Worker::count_step(Request& request, bool wrote) const {
  const bool is_new = request.counted_ < step_start_;
  const Clock::time_point now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - std::max(step_start_, request.counted_)).count();
  request.counted_ = now;
  if (request.has_first_) {
    request.times_.writing += seconds;
    request.times_.steps += is_new ? 1 : 0;
    request.times_.tokens += wrote ? 1 : 0;
  } else {
    request.times_.reading += seconds;
  }
  request.has_first_ |= wrote;
}

// Chooses the next token of a request, and further tokens for as long as draft tokens are accepted. If a mask is
// missing, the logits are kept until the mask is set. `held` says that these logits were kept.
FinishReason Worker::next_tokens(Job& job, const float* logits, bool held) {
  const bool is_masked = job.request->options.masked;
  const int64_t drafted = job.drafted(), first = std::exchange(job.right, 0), width = row_width();
  if (!held) job.slowed = slowed_;
  int64_t right = first;
  FinishReason reason;
  for (;;) {
    const float* const row = logits + (right - first) * width;
    const std::shared_ptr<const TokenMask> mask = is_masked ? mask_of(job) : nullptr;
    if (is_masked && !mask) {
      job.held.assign(row, row + (1 + drafted - right) * width);
      job.right = right;
      if (right > first && scheduler_.running().size() > 1) job.slowed += 1;  // others' steps pass meanwhile
      const Lock lock(fork_safe_mutex());
      if (!held) count_step(*job.request, false);
      return FinishReason::kNone;
    }
    reason = next_token(job, row, mask, held);
    if (reason != FinishReason::kNone || !job.drafts || !job.drafts->check(right, job.ids.back())) break;
    ++right;
  }
  if (!job.drafts) return reason;
  job.kv.truncate(job.kv.length() - drafted + right);
  job.draft_state.right = right;
  job.drafts->account(job.slowed, 1 + right);
  if (job.drafts->is_of_model()) model_chance_ += 0.05 * (job.drafts->model_chance() - model_chance_);
  const Lock lock(fork_safe_mutex());
  stats.accepted_tokens += right;
  job.request->times_.drafted += drafted;
  job.request->times_.accepted += right;
  return reason;
}

// Chooses the next token of a text from its logits. `held` says that the logits were kept until the mask was there.
FinishReason Worker::next_token(Job& job, const float* logits, const std::shared_ptr<const TokenMask>& mask,
                                bool held) {
  Request& request = *job.request;
  const RequestOptions& options = request.options;
  const auto width = static_cast<size_t>(row_width());
  const std::optional<int32_t> chosen = std::exchange(job.chosen, std::nullopt);
  const int32_t id = chosen ? *chosen : job.sampler->sample({logits, width}, job.ids, bits_of(mask));
  const bool is_end = std::find(options.end_ids.begin(), options.end_ids.end(), id) != options.end_ids.end();
  std::optional<Logprobs> logprobs;
  if (options.logprobs && !is_end) {
    logprobs = logprobs_.read({logits, width}, id, *options.logprobs);
  }
  if (!is_end) {
    job.ids.push_back(id);
    job.key.add(id);
  }
  {
    const Lock lock(fork_safe_mutex());
    if (held) {  // the pass that computed it was counted
      request.times_.tokens += request.has_first_ ? 1 : 0;
      request.has_first_ = true;
    } else {
      count_step(request, true);
    }
    if (!is_end) {
      if (logprobs) request.logprobs_.push_back(std::move(*logprobs));
      request.add(id);
      ++stats.generated_tokens;
    }
  }
  if (is_end) return FinishReason::kStop;
  const auto generated = static_cast<int64_t>(job.ids.size() - options.prompt.size());
  if (generated >= options.max_tokens) return FinishReason::kLength;
  const bool is_full = static_cast<int64_t>(job.ids.size()) > model_->config().max_context;
  return is_full ? FinishReason::kContext : FinishReason::kNone;
}

// Hands out the rows of logits after `tokens` more tokens, or an embedding.
FinishReason Worker::next_rows(Job& job, const float* values, int64_t tokens) {
  Request& request = *job.request;
  int64_t count = 1, known = 0;
  if (job.wanted() == Wanted::kLogits) {
    // If a text is read again, after a fork or because memory ran out, the reader has the first rows already. There are
    // also rows before the first wanted one if a span contains both.
    count = tokens;
    const int64_t first = job.kv.length() - tokens - request.options.first_row;
    known = std::clamp<int64_t>(request.handed_rows_ - first, 0, count);
  }
  std::vector<float> own(values + known * row_width(), values + count * row_width());
  const Lock lock(fork_safe_mutex());
  request.values_ = std::move(own);  // the last ones were taken: until then it was paused
  request.handed_rows_ += count - known;
  count_step(request, false);
  return job.remaining() == 0 ? FinishReason::kStop : FinishReason::kNone;
}

}  // namespace gemlet
