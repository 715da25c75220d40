#include "engine/worker.h"

#include <algorithm>
#include <new>
#include <utility>

namespace gemlet {
namespace {

using Clock = RequestOptions::Clock;
using Lock = std::lock_guard<std::mutex>;

constexpr std::chrono::hours kLong(1);

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

PrefixCache::Root root_of(const Request& request) { return {request.options.adapter, request.options.cache_salt}; }

}  // namespace

Worker::Worker(const std::shared_ptr<Model>& of, const EngineOptions& options)
    : model_(of),
      cache(of->kv(), options.prefix_cache, event),
      options_(options),
      scheduler_({kChunkTokens, options.most_running, of->config().bidirectional}) {}

// Returns false if there was nothing to compute.
bool Worker::step() {
  collect();
  choose_held();
  begin_waiting();
  const std::vector<Scheduler::Part> parts = scheduler_.plan(times_.prompt_tokens());
  if (parts.empty()) return false;
  int64_t writers = 0, read = 0;
  for (const Scheduler::Part& part : parts) part.job->is_writing() ? ++writers : read += part.tokens;
  step_start_ = Clock::now();
  const int64_t drafted = draft(parts, read);
  {
    const Lock lock(fork_safe_mutex());
    for (const Scheduler::Part& part : parts) {
      if (!part.job->request->began_) part.job->request->began_ = step_start_;
    }
  }
  if (!forward(parts)) return true;
  const double seconds = seconds_since(step_start_);
  times_.add(writers + drafted, drafted, read, seconds);
  slowed_ = drafted > 0 ? times_.writing(writers + drafted) / times_.writing(writers) : 1;
  {
    const Lock lock(fork_safe_mutex());
    ++stats.steps;
    stats.prompt_tokens += read;
    stats.drafted_tokens += drafted;
    stats.step_seconds += seconds;
  }
  hand_out(parts);
  return true;
}

// What nobody else has caught ends all requests, and the worker goes on.
bool Worker::step_or_fail() {
  try {
    return step();
  } catch (const Error& error) {
    end_all(FinishReason::kFailed, &error);
  } catch (const std::bad_alloc&) {
    const Error error(ErrorCode::kMemory, "there is no memory for a step of the engine");
    end_all(FinishReason::kFailed, &error);
  }
  return true;
}

// Until the next deadline of a request that does not advance.
std::chrono::nanoseconds Worker::patience() const {
  std::chrono::nanoseconds patience = kLong;
  const auto look = [&](const std::unique_ptr<Job>& job) {
    const auto& deadline = job->request->options.deadline;
    if (deadline) patience = std::min<std::chrono::nanoseconds>(patience, *deadline - Clock::now());
  };
  std::for_each(scheduler_.running().begin(), scheduler_.running().end(), look);
  std::for_each(scheduler_.waiting().begin(), scheduler_.waiting().end(), look);
  if (scheduler_.next_waiting()) {  // until a reader has been slow for long enough
    for (const auto& job : scheduler_.running()) {
      if (job->slow_since) {
        const auto left = *job->slow_since + kGrace + std::chrono::milliseconds(1) - Clock::now();
        patience = std::min(patience, std::max<std::chrono::nanoseconds>(left, std::chrono::milliseconds(1)));
      }
    }
  }
  return patience;
}

// New requests, those that end without a token, and those whose readers are slow.
void Worker::collect() {
  std::vector<std::pair<std::shared_ptr<Request>, std::vector<int32_t>>> fresh;
  std::vector<Job*> jobs;
  const auto add = [&](const std::unique_ptr<Job>& job) { jobs.push_back(job.get()); };
  {
    const Lock lock(fork_safe_mutex());
    for (auto& request : submitted) fresh.emplace_back(request, request->generated_);
    submitted.clear();
    const auto look = [](const std::unique_ptr<Job>& job) {
      const Request& request = *job->request;
      job->unread = static_cast<int64_t>(request.generated_.size() - request.taken_);
      job->paused = job->unread >= request.options.most_unread || !request.values_.empty();
    };
    std::for_each(scheduler_.running().begin(), scheduler_.running().end(), look);
    std::for_each(scheduler_.waiting().begin(), scheduler_.waiting().end(), look);
  }
  const Clock::time_point now = Clock::now();
  for (const auto& job : scheduler_.running()) {
    if (!job->waits_for_reader()) job->slow_since.reset();
    if (job->waits_for_reader() && !job->slow_since) job->slow_since = now;
  }
  for (auto& [request, generated] : fresh) {
    std::vector<int32_t> ids = request->options.prompt;
    ids.insert(ids.end(), generated.begin(), generated.end());
    SamplerConfig sampler = request->options.sampler;
    sampler.drawn += sampler.temperature > 0 ? generated.size() : 0;
    TextKey key(ids, request->options.media);
    SoftText soft(request->options.media, model_->config());
    auto job = std::make_unique<Job>(Job{request, ++arrivals_, KvTable(model_->kv(), true), std::move(ids),
                                         std::move(key), std::move(soft), std::make_unique<Sampler>(sampler)});
    if (job->wanted() == Wanted::kText) {
      job->reading = cache.look_up(root_of(*request), job->key);
      // Of a masked text nothing is guessed, but guesses about others must not slow it down either.
      std::unique_ptr<Drafter> drafter;
      if (!request->options.masked) drafter = std::make_unique<PromptLookup>();
      if (options_.drafts != DraftUse::kNever) job->drafts = std::make_unique<Drafts>(std::move(drafter));
    }
    scheduler_.add(std::move(job));
  }
  std::for_each(scheduler_.running().begin(), scheduler_.running().end(), add);
  std::for_each(scheduler_.waiting().begin(), scheduler_.waiting().end(), add);
  for (Job* const job : jobs) {
    const auto& deadline = job->request->options.deadline;
    if (job->request->cancelled_.load(std::memory_order_relaxed)) {
      end(job, FinishReason::kCancelled);
    } else if (deadline && *deadline <= now) {
      end(job, FinishReason::kTimeout);
    }
  }
}

// Lets requests begin while there are places, and memory for their texts.
void Worker::begin_waiting() {
  while (Job* const job = scheduler_.next_waiting()) {
    const bool has_room = !scheduler_.is_full() && (!memory_is_short_ || scheduler_.running().empty());
    if (!has_room && !put_slow_reader_back()) break;
    if (!has_room) continue;
    cache.forget_gone_adapters();
    const bool is_text = job->wanted() == Wanted::kText;
    if (job->kv.length() == 0 && (is_text || job->before_rows() > 0)) {
      if (job->reading) cache.add(root_of(*job->request), *job->reading);
      job->reading.reset();
      // One has to be computed for its logits.
      const int64_t most = is_text ? static_cast<int64_t>(job->ids.size()) - 1 : job->before_rows();
      const int64_t cached = cache.restore(root_of(*job->request), job->key, most, job->kv);
      job->kept_blocks = cached / kKvBlockTokens;
      if (cached > 0 && job->request->generated_.empty()) {
        job->request->cached_tokens_.store(cached, std::memory_order_relaxed);
        const Lock lock(fork_safe_mutex());
        stats.cached_tokens += cached;
      }
    }
    const int64_t needed = model_->kv().layout().bytes_of(static_cast<int64_t>(job->ids.size()) + 1) - job->kv.bytes();
    const int64_t missing = needed - model_->kv().room();
    if (missing > 0 && !scheduler_.running().empty() && !cache.give_up(missing)) {
      if (!put_slow_reader_back()) break;
      continue;
    }
    scheduler_.begin(job);
  }
  const int64_t cached_bytes = cache.bytes();
  const Lock lock(fork_safe_mutex());
  stats.running = static_cast<int64_t>(scheduler_.running().size());
  stats.waiting = static_cast<int64_t>(scheduler_.waiting().size());
  stats.prefix_cache_bytes = cached_bytes;
}

// Guesses about the texts that are being written. Returns how many guessed tokens go through the pass: none where
// prompts are read, too, because arithmetic takes the time there.
int64_t Worker::draft(const Parts& parts, int64_t read) {
  std::vector<Drafts*> texts;
  for (const Scheduler::Part& part : parts) {
    Job& job = *part.job;
    if (!job.drafts) continue;
    const RequestOptions& options = job.request->options;
    const auto length = static_cast<int64_t>(job.ids.size());
    const int64_t written = length - static_cast<int64_t>(options.prompt.size());
    int64_t most = 0;
    if (job.is_writing() && written > 0) {
      most = std::min({options_.most_drafted, options.max_tokens - written - 1, options.most_unread - job.unread - 1,
                       model_->config().max_context - length});
    }
    job.drafts->propose(job.ids, most);
    texts.push_back(job.drafts.get());
  }
  if (read > 0 || std::exchange(drafts_wait_, false)) return 0;
  const auto rows = static_cast<int64_t>(parts.size());
  if (options_.drafts == DraftUse::kWherePaying) return choose_drafts(texts, rows, options_.most_drafted, times_);
  int64_t room = std::min(options_.most_drafted, StepTimes::kMostRows - rows), count = 0;
  for (Drafts* const text : texts) count += text->take(room - count);
  return count;
}

// Returns false if no request has advanced.
bool Worker::forward(const Parts& parts) {
  Batch batch;
  std::vector<TokenPart> runs;
  const ModelConfig& config = model_->config();
  rows_.assign(parts.size(), -1);
  int64_t count = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [job, tokens] = parts[i];
    runs.push_back(job->next(tokens, config.hidden_size));
    Segment segment = {&job->kv, runs.back().run(), LogitsWanted::kNone};
    if (job->wanted() == Wanted::kLogits && job->before_rows() < tokens) {
      segment.wanted = LogitsWanted::kAll;
    } else if (job->wanted() == Wanted::kText && tokens == job->remaining()) {
      segment.wanted = LogitsWanted::kLast;
    }
    if (job->drafted() > 0) {
      segment.tokens.ids = job->drafts->behind(job->ids.back());
      segment.wanted = LogitsWanted::kAll;
    }
    const int64_t outputs = job->wanted() == Wanted::kEmbedding ? 1 : segment.logits_rows();
    if (outputs > 0) rows_[i] = count;
    count += outputs;
    segment.adapter = job->request->options.adapter.get();
    segment.cancel = &job->request->cancelled_;
    batch.segments.push_back(segment);
  }
  try {
    const size_t bytes = static_cast<size_t>(count * row_width()) * sizeof(float);
    // With room for what another step may guess.
    const int64_t rows = options_.drafts == DraftUse::kNever ? 0 : options_.most_drafted + 1;
    const size_t least = std::max(bytes, static_cast<size_t>(rows * row_width()) * sizeof(float));
    if (outputs_.size() < bytes || outputs_.size() > std::max(4 * bytes, least)) outputs_ = AlignedBuffer(least);
    (config.bidirectional ? batch.embeddings : batch.logits) = outputs_.as<float>();
    const std::vector<bool> cancelled = model_->forward(batch);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (cancelled[i]) rows_[i] = -1;
    }
    return true;
  } catch (const Error& error) {
    switch (error.code()) {
      case ErrorCode::kMemory:
        make_room(error);
        break;
      case ErrorCode::kClosed:
      case ErrorCode::kModelFile:
        end_all(FinishReason::kFailed, &error);
        break;
      default:
        fail_parts(parts, error);
    }
  } catch (const std::bad_alloc&) {
    make_room(Error(ErrorCode::kMemory, "there is no memory for the forward pass"));
  }
  return false;
}

// Back among those that wait. What was computed may stay in the prefix cache.
void Worker::put_back(Job* job) {
  job->kv = KvTable(model_->kv(), true);
  job->kept_blocks = 0;
  job->held.clear();
  job->slow_since.reset();
  scheduler_.put_back(job);
  const Lock lock(fork_safe_mutex());
  ++stats.preemptions;
}

// A text that waits for its reader gives its place to one that waits for a place. Returns false if there is none.
bool Worker::put_slow_reader_back() {
  Job* const job = scheduler_.slow_reader(Clock::now());
  if (!job) return false;
  if (job->wanted() == Wanted::kText) {
    cache.keep(root_of(*job->request), job->key, job->kv, job->kept_blocks, true);
  }
  memory_is_short_ = false;
  put_back(job);
  return true;
}

void Worker::make_room(const Error& error) {
  drafts_wait_ = true;
  if (cache.give_up(std::max<int64_t>(cache.bytes() / 4, 1)) || cache.abandon()) return;
  bool was_read = false;  // from the disk, for texts that wait
  for (const auto& job : scheduler_.waiting()) {
    if (!job->reading || !job->is_ready()) continue;
    was_read = was_read || !job->reading->found.empty();
    job->reading.reset();
  }
  if (was_read) return;
  memory_is_short_ = true;
  if (Job* const job = scheduler_.victim()) {
    put_back(job);
    return;
  }
  end(scheduler_.running().front().get(), FinishReason::kFailed, &error);
}

int64_t Worker::row_width() const {
  const ModelConfig& config = model_->config();
  return config.bidirectional ? config.embedding_size() : config.vocab_size;
}

// Calls next(), which returns whether the job has ended.
template <typename Next>
void Worker::hand_out(Job* job, Ends& ends, Next next) {
  try {
    const FinishReason reason = next();
    job->request->options.news->notify();
    if (reason != FinishReason::kNone) ends.ended.emplace_back(job, reason);
  } catch (const Error& error) {
    ends.failed.emplace_back(job, error);
  } catch (const std::bad_alloc&) {
    ends.failed.emplace_back(job, Error(ErrorCode::kMemory, "there is no memory for what a request computed"));
  }
}

// What the pass computed goes to the readers.
void Worker::hand_out(const Parts& parts) {
  Ends ends;
  for (size_t i = 0; i < parts.size(); ++i) {
    Job* const job = parts[i].job;
    Request& request = *job->request;
    const auto keep = [&] {  // what is certain
      if (job->wanted() == Wanted::kEmbedding) return;
      job->kept_blocks = cache.keep(root_of(request), job->key, job->kv, job->kept_blocks, false);
    };
    if (request.generated_.empty()) request.read_tokens_.store(job->kv.length(), std::memory_order_relaxed);
    if (rows_[i] < 0) {
      keep();
      const Lock lock(fork_safe_mutex());
      count_step(request, false);
      request.options.news->notify();  // who shows how much was read may look
      continue;
    }
    const float* const values = outputs_.as<float>() + rows_[i] * row_width();
    hand_out(job, ends, [&] {
      const FinishReason reason =
          job->wanted() == Wanted::kText ? next_tokens(*job, values) : next_rows(*job, values, parts[i].tokens);
      keep();
      return reason;
    });
  }
  end(ends);
}

// The next tokens of texts that waited for a mask which is there now.
void Worker::choose_held() {
  Ends ends;
  for (const auto& job : scheduler_.running()) {
    if (job->held.empty() || !mask_of(*job)) continue;
    const std::vector<float> logits = std::exchange(job->held, {});
    hand_out(job.get(), ends, [&] { return next_token(*job, logits.data(), true); });
  }
  end(ends);
}

// Which tokens the reader lets be next; null if it has not said so yet.
std::shared_ptr<const TokenMask> Worker::mask_of(const Job& job) {
  const Lock lock(fork_safe_mutex());
  const Request& request = *job.request;
  return request.mask_position_ == request.generated_.size() ? request.mask_ : nullptr;
}

// Under fork_safe_mutex(): the time of this step so far counts for the request. `wrote`: it got a token.
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

// Chooses the next token of a text, and those after it for as long as its guesses are right.
FinishReason Worker::next_tokens(Job& job, const float* logits) {
  if (!job.drafts) return next_token(job, logits, false);
  const int64_t certain = job.kv.length() - job.drafted();
  int64_t right = 0;
  FinishReason reason;
  for (;;) {
    reason = next_token(job, logits + right * row_width(), false);
    if (reason != FinishReason::kNone || !job.drafts->check(right, job.ids.back())) break;
    ++right;
  }
  job.kv.truncate(certain + right);
  job.drafts->account(slowed_, 1 + right);
  const Lock lock(fork_safe_mutex());
  stats.accepted_tokens += right;
  return reason;
}

// Chooses the next token of a text from its logits, or keeps them until its mask is there. `held`: they were kept.
FinishReason Worker::next_token(Job& job, const float* logits, bool held) {
  Request& request = *job.request;
  const RequestOptions& options = request.options;
  const auto width = static_cast<size_t>(row_width());
  const std::shared_ptr<const TokenMask> mask = options.masked ? mask_of(job) : nullptr;
  if (options.masked && !mask) {
    job.held.assign(logits, logits + width);
    const Lock lock(fork_safe_mutex());
    count_step(request, false);
    return FinishReason::kNone;
  }
  const std::span<const uint32_t> allowed = mask ? std::span(*mask) : std::span<const uint32_t>();
  const int32_t id = job.sampler->sample({logits, width}, job.ids, allowed);
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
    if (held) {  // its pass was counted
      request.times_.tokens += request.has_first_ ? 1 : 0;
      request.has_first_ = true;
    } else {
      count_step(request, true);
    }
    if (!is_end) {
      if (logprobs) request.logprobs_.push_back(std::move(*logprobs));
      request.generated_.push_back(id);
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
    // Of a text that is read again, after a fork or because memory ran out, the reader has the first rows. Those
    // before the first one that is wanted are there if a span has both.
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

void Worker::end(Job* job, FinishReason reason, const Error* error) {
  const std::unique_ptr<Job> owned = scheduler_.remove(job);
  memory_is_short_ = false;
  Request& request = *owned->request;
  if (reason != FinishReason::kFailed && owned->wanted() != Wanted::kEmbedding) {
    cache.keep(root_of(request), owned->key, owned->kv, owned->kept_blocks, true);
  }
  owned->kv = KvTable(model_->kv());  // before the reader knows
  const int64_t cached_bytes = cache.bytes();
  const std::shared_ptr<Event> news = request.options.news;
  {
    const Lock lock(fork_safe_mutex());
    request.reason_ = reason;
    if (error) request.error_ = *error;
    request.engine_event_ = nullptr;
    live.erase(std::find(live.begin(), live.end(), owned->request));
    stats.running = static_cast<int64_t>(scheduler_.running().size());
    stats.waiting = static_cast<int64_t>(scheduler_.waiting().size());
    stats.prefix_cache_bytes = cached_bytes;
    // The reader knows from here on. What the request holds, such as an adapter, goes when the reader lets it go.
    if (owned->request.use_count() > 1) owned->request.reset();
  }
  news->notify();
}

void Worker::end(const Ends& ends) {
  for (const auto& [job, reason] : ends.ended) end(job, reason);
  for (const auto& [job, error] : ends.failed) end(job, FinishReason::kFailed, &error);
}

void Worker::end_all(FinishReason reason, const Error* error) {
  collect();
  while (!scheduler_.running().empty()) end(scheduler_.running().front().get(), reason, error);
  while (!scheduler_.waiting().empty()) end(scheduler_.waiting().front().get(), reason, error);
}

void Worker::fail_parts(const std::vector<Scheduler::Part>& parts, const Error& error) {
  for (const Scheduler::Part& part : parts) end(part.job, FinishReason::kFailed, &error);
}

}  // namespace gemlet
