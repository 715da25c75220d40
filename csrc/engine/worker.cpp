#include "engine/worker.h"

#include <algorithm>
#include <new>
#include <utility>

#include "engine/assistant_drafts.h"

namespace gemlet {
namespace {

using Clock = RequestOptions::Clock;
using Lock = std::lock_guard<std::mutex>;

constexpr std::chrono::hours kLong(1);

}  // namespace

Worker::Worker(const std::shared_ptr<Model>& of, const EngineOptions& options)
    : model_(of),
      cache(of->kv(), options.prefix_cache, event),
      options_(options),
      scheduler_({kChunkTokens, options.most_running, of->config().bidirectional}) {
  if (!options.drafter || options.drafts == DraftUse::kNever) return;
  if (options.drafter->config().target_size > 0) {
    draft_model_ = std::make_unique<Assistant>(options.drafter, of);
  } else {
    draft_model_ = std::make_unique<SmallerModel>(options.drafter, of, options.drafter_cache_bytes, event);
  }
}

// Returns false if there was nothing to compute.
bool Worker::step() {
  collect();
  choose_held();
  begin_waiting();
  const std::vector<Scheduler::Part> parts = scheduler_.plan(times_);
  if (parts.empty()) return false;
  int64_t writers = 0, read = 0;
  for (const Scheduler::Part& part : parts) part.job->is_writing() ? ++writers : read += part.tokens;
  step_start_ = Clock::now();
  const int64_t drafted = draft(parts, read);
  if (drafted > 0) show_guesses(parts);
  {
    const Lock lock(fork_safe_mutex());
    for (const Scheduler::Part& part : parts) {
      Request& request = *part.job->request;
      if (request.began_) continue;
      request.began_ = step_start_;
      ++stats.begun;
      stats.waiting_seconds += std::chrono::duration<double>(step_start_ - request.submitted_).count();
    }
  }
  if (!forward(parts)) return true;
  const double seconds = seconds_since(step_start_), of_model = model_seconds_;
  times_.add(writers + drafted, drafted, read, seconds - of_model - read_apart_);
  slowed_ = 1;
  if ((drafted > 0 || of_model > 0) && times_.knows_any(writers)) {
    slowed_ = times_.cost(writers + drafted, writers) + of_model / times_.seconds(writers);
  }
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

// An error that nobody else has caught ends all requests, and the worker goes on.
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

// How long the worker may sleep: until the next deadline of a request that does not advance.
std::chrono::nanoseconds Worker::patience() const {
  std::chrono::nanoseconds patience = kLong;
  const auto look = [&](const std::unique_ptr<Job>& job) {
    const auto& deadline = job->request->options.deadline;
    if (deadline) patience = std::min<std::chrono::nanoseconds>(patience, *deadline - Clock::now());
  };
  std::for_each(scheduler_.running().begin(), scheduler_.running().end(), look);
  std::for_each(scheduler_.waiting().begin(), scheduler_.waiting().end(), look);
  if (scheduler_.next_waiting()) {  // it waits until a reader has been slow for long enough
    for (const auto& job : scheduler_.running()) {
      if (job->slow_since) {
        const auto left = *job->slow_since + kGrace + std::chrono::milliseconds(1) - Clock::now();
        patience = std::min(patience, std::max<std::chrono::nanoseconds>(left, std::chrono::milliseconds(1)));
      }
    }
  }
  return patience;
}

// Takes new requests, ends requests that get no further token, and pauses requests whose readers are slow.
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
      job->paused = job->unread >= request.options.most_unread || !request.values_.empty() ||
                    (job->needs_mask && !request.has_mask());
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
      if (options_.drafts != DraftUse::kNever) {
        job->drafts = std::make_unique<Drafts>(std::make_unique<PromptLookup>(), model_chance_);
      }
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

// Starts waiting requests while there are free places, and memory for their keys and values.
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
      // The last token must be computed, because its logits are needed.
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
    job->needs_mask = false;
    scheduler_.begin(job);
  }
  const int64_t cached_bytes = cache.bytes();
  const Lock lock(fork_safe_mutex());
  stats.running = static_cast<int64_t>(scheduler_.running().size());
  stats.waiting = static_cast<int64_t>(scheduler_.waiting().size());
  stats.prefix_cache_bytes = cached_bytes;
}

// Proposes draft tokens for the decoding requests. Returns the number of draft tokens in the next pass. A step that
// prefills has no draft tokens, because there the arithmetic takes the time.
int64_t Worker::draft(const Parts& parts, int64_t read) {
  std::vector<Drafts*> texts;
  model_seconds_ = read_apart_ = 0;
  const auto rows = static_cast<int64_t>(parts.size());
  for (const Scheduler::Part& part : parts) {
    Job& job = *part.job;
    if (!job.drafts) continue;
    job.drafts->propose(job.ids, most_drafted(job));
    texts.push_back(job.drafts.get());
  }
  if (read > 0 || std::exchange(drafts_wait_, false)) return 0;
  DraftChoice found;
  if (options_.drafts == DraftUse::kWherePaying) {
    found = choose_drafts(texts, rows, options_.most_drafted, times_);
  } else if (!draft_model_) {
    const int64_t room = std::min(options_.most_drafted, StepTimes::kMostRows - rows);
    for (Drafts* const text : texts) found.count += text->take(room - found.count);
  }
  return draft_model_ ? draft_with_model(parts, found) : found.count;
}

// Shows the draft tokens to readers that set masks. They set the masks of the tokens after them during the pass.
void Worker::show_guesses(const Parts& parts) {
  for (const Scheduler::Part& part : parts) {
    if (part.job->drafted() == 0) continue;
    Request& request = *part.job->request;
    {
      const Lock lock(fork_safe_mutex());
      ++stats.drafts;
      if (request.options.masked) request.guess(part.job->drafts->taken());
    }
    if (request.options.masked) request.options.news->notify();
  }
}

// The most draft tokens for a request.
int64_t Worker::most_drafted(const Job& job) const {
  const RequestOptions& options = job.request->options;
  const auto length = static_cast<int64_t>(job.ids.size());
  const int64_t written = length - static_cast<int64_t>(options.prompt.size());
  if (!job.is_writing() || written <= 0) return 0;
  return std::max<int64_t>(0, std::min({options_.most_drafted, options.max_tokens - written - 1,
                                        options.most_unread - job.unread - 1, model_->config().max_context - length}));
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
    // The buffer also needs room for the rows of another step's draft tokens.
    const int64_t rows = options_.drafts == DraftUse::kNever ? 0 : options_.most_drafted + 1;
    const size_t least = std::max(bytes, static_cast<size_t>(rows * row_width()) * sizeof(float));
    if (outputs_.size() < bytes || outputs_.size() > std::max(4 * bytes, least)) outputs_ = AlignedBuffer(least);
    (config.bidirectional ? batch.embeddings : batch.logits) = outputs_.as<float>();
    if (draft_model_ && draft_model_->takes_states()) {
      const size_t floats = static_cast<size_t>(count * config.hidden_size);
      if (states_.size() < floats) states_.resize(floats);
      batch.states = states_.data();
    }
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

// Moves a job back to the waiting ones. The prefix cache may keep its keys and values.
void Worker::put_back(Job* job) {
  job->kv = KvTable(model_->kv(), true);
  job->kept_blocks = 0;
  if (!job->held.empty()) job->paused = job->needs_mask = true;
  job->held.clear();
  job->right = 0;
  if (draft_model_) draft_model_->end(*job);
  job->slow_since.reset();
  scheduler_.put_back(job);
  const Lock lock(fork_safe_mutex());
  ++stats.preemptions;
}

// Takes the place of a request with a slow reader, if another request waits for a place. Returns false if there is no
// such request.
bool Worker::put_slow_reader_back() {
  Job* const job = scheduler_.slow_reader(Clock::now());
  if (!job) return false;
  if (job->wanted() == Wanted::kText) {
    job->forget_guesses();
    cache.keep(root_of(*job->request), job->key, job->kv, job->kept_blocks, true);
  }
  memory_is_short_ = false;
  put_back(job);
  return true;
}

void Worker::make_room(const Error& error) {
  drafts_wait_ = true;
  if (cache.give_up(std::max<int64_t>(cache.bytes() / 4, 1)) || cache.abandon()) return;
  bool was_read = false;  // whether the disk has been read for texts that wait
  for (const auto& job : scheduler_.waiting()) {
    if (!job->reading || !job->is_ready()) continue;
    was_read = was_read || !job->reading->found.empty();
    job->reading.reset();
  }
  if (was_read || (draft_model_ && draft_model_->make_room())) return;
  memory_is_short_ = true;
  if (Job* const job = scheduler_.victim()) {
    put_back(job);
    return;
  }
  end(scheduler_.running().front().get(), FinishReason::kFailed, &error);
}

void Worker::end(Job* job, FinishReason reason, const Error* error) {
  const std::unique_ptr<Job> owned = scheduler_.remove(job);
  memory_is_short_ = false;
  Request& request = *owned->request;
  if (draft_model_) draft_model_->end(*owned);
  if (reason != FinishReason::kFailed && owned->wanted() != Wanted::kEmbedding) {
    owned->forget_guesses();
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
    // From here on, the reader knows that the request has ended. When the reader releases the request, everything that
    // it holds is freed, such as an adapter.
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

void Worker::close() {
  cache.close();
  if (draft_model_) draft_model_->close();
}

void Worker::fail_parts(const std::vector<Scheduler::Part>& parts, const Error& error) {
  for (const Scheduler::Part& part : parts) end(part.job, FinishReason::kFailed, &error);
}

}  // namespace gemlet
