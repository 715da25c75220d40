#include "engine/engine.h"

#include <algorithm>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/aligned_buffer.h"
#include "base/fork_mutex.h"
#include "engine/step_times.h"

namespace gemlet {
namespace {

using Clock = RequestOptions::Clock;
using Lock = std::lock_guard<std::mutex>;

constexpr std::chrono::hours kLong(1);

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

PrefixCache::Root root_of(const Request& request) { return {request.options.adapter, request.options.cache_salt}; }

}  // namespace

// The part under fork_safe_mutex() is whole in a forked process. The rest is the worker's.
struct Engine::State {
  State(const std::shared_ptr<Model>& of, EngineOptions options)
      : model(of), scheduler({kChunkTokens, options.most_running}), cache(model->kv(), options.prefix_cache, event) {}

  // Under fork_safe_mutex().
  const uint32_t forks = fork_generation();
  std::vector<std::shared_ptr<Request>> live;       // all that have not ended
  std::vector<std::shared_ptr<Request>> submitted;  // of them, those that the worker has not seen
  EngineStats stats;
  bool closing = false;
  bool has_worker = false;
  std::thread worker;

  Event event;  // for the worker: there may be work

  // The worker's.
  const std::shared_ptr<Model> model;
  std::mutex stepping;  // where the system grants no worker, callers of wait() take turns
  Scheduler scheduler;
  PrefixCache cache;
  StepTimes times;
  bool memory_is_short = false;  // none begins before another has ended
  AlignedBuffer logits;          // of the last pass
  std::vector<int64_t> rows;     // of each part of the last pass: its row of logits, -1 if it has none
  uint64_t arrivals = 0;

  bool step();
  bool step_or_fail();
  std::chrono::nanoseconds patience() const;
  void collect();
  void begin_waiting();
  bool forward(const std::vector<Scheduler::Part>& parts);
  void make_room(const Error& error);
  void sample(const std::vector<Scheduler::Part>& parts);
  void end(Job* job, FinishReason reason, const Error* error = nullptr);
  void end_all(FinishReason reason, const Error* error = nullptr);
  void fail_parts(const std::vector<Scheduler::Part>& parts, const Error& error);
};

// --- What any thread calls ------------------------------------------------------------------------------------------

Engine::Engine(std::shared_ptr<Model> model, EngineOptions options)
    : model_(std::move(model)), options_(options), state_(std::make_shared<State>(model_, options)) {
  if (model_->config().bidirectional) {
    fail(ErrorCode::kUnsupported, "the model makes embeddings of texts and cannot continue one");
  }
  KvPool& kv = model_->kv();
  const int64_t own = kv.layout().peak_bytes();
  kv.set_limit(options_.kv_bytes > INT64_MAX - own ? INT64_MAX : own + options_.kv_bytes);
}

Engine::~Engine() { close(); }

// The state of this process, under fork_safe_mutex(). After a fork: a new one, with the requests of the old.
Engine::State& Engine::state() {
  if (state_->forks != fork_generation()) {
    auto fresh = std::make_shared<State>(model_, options_);
    fresh->live = state_->live;
    fresh->submitted = state_->live;
    fresh->closing = state_->closing;
    for (const auto& request : fresh->live) request->engine_event_ = &fresh->event;
    leave_behind(state_);  // the parent's worker may have been changing it
    state_ = std::move(fresh);
  }
  return *state_;
}

std::shared_ptr<Request> Engine::submit(RequestOptions options) {
  const ModelConfig& config = model_->config();
  if (options.prompt.empty()) fail(ErrorCode::kInvalidRequest, "there are no token ids to continue; give at least one");
  for (size_t i = 0; i < options.prompt.size(); ++i) {
    const int32_t id = options.prompt[i];
    if (id < 0 || id >= config.vocab_size) {
      fail(ErrorCode::kInvalidRequest, "token id ", id, " at position ", i,
           " is out of range: the vocabulary has ids 0 to ", config.vocab_size - 1);
    }
  }
  if (static_cast<int64_t>(options.prompt.size()) > config.max_context) {
    fail(ErrorCode::kContextLength, options.prompt.size(), " tokens do not fit the context of ", config.max_context,
         " tokens; shorten the prompt");
  }
  if (options.max_tokens < 1) fail(ErrorCode::kInvalidRequest, "max_tokens is ", options.max_tokens, ", expected >= 1");
  if (options.most_unread < 1)
    fail(ErrorCode::kInvalidRequest, "most_unread is ", options.most_unread, ", expected >= 1");
  if (options.adapter && !options.adapter->belongs_to(*model_)) {
    fail(ErrorCode::kInvalidRequest, "the adapter belongs to another model; load it with this one");
  }
  const Sampler checked(options.sampler);
  if (model_->closed()) fail(ErrorCode::kClosed, "the model is closed; load it again");
  auto request = std::make_shared<Request>(std::move(options));

  const Lock lock(fork_safe_mutex());
  State& state = this->state();
  if (state.closing) fail(ErrorCode::kClosed, "the engine is closed; load the model again");
  request->engine_event_ = &state.event;
  state.live.push_back(request);
  state.submitted.push_back(request);
  start_worker(state);
  state.event.notify();
  return request;
}

void Engine::start_worker(State& state) {
  if (state.has_worker) return;
  try {
    state.worker = std::thread(&Engine::work, state_);
    state.has_worker = true;
  } catch (const std::system_error&) {  // wait() computes instead
  }
}

void Engine::work(const std::shared_ptr<State>& state) {
  for (;;) {
    const uint32_t seen = state->event.value();
    {
      const Lock lock(fork_safe_mutex());
      if (state->closing) break;
    }
    if (!state->step_or_fail()) state->event.wait(seen, state->patience());
  }
  state->end_all(FinishReason::kCancelled);
}

void Engine::wait(const Event& news, uint32_t seen, std::chrono::nanoseconds patience) {
  if (news.value() != seen) return;
  std::shared_ptr<State> idle;
  {
    const Lock lock(fork_safe_mutex());
    State& state = this->state();
    if (!state.live.empty()) start_worker(state);
    if (!state.has_worker) idle = state_;
  }
  if (idle && idle->stepping.try_lock()) {
    const Lock lock(idle->stepping, std::adopt_lock);
    if (idle->step_or_fail()) return;
  }
  news.wait(seen, patience);
}

EngineStats Engine::stats() const {
  const Lock lock(fork_safe_mutex());
  EngineStats stats = state_->stats;
  stats.kv_bytes = model_->kv().used_bytes();
  return stats;
}

std::shared_ptr<PrefixCache> Engine::prefix_cache() {
  const Lock lock(fork_safe_mutex());
  State& state = this->state();
  if (state.closing) fail(ErrorCode::kClosed, "the engine is closed; load the model again");
  return {state_, &state.cache};
}

void Engine::close() {
  std::shared_ptr<State> state;
  std::thread worker;
  {
    const Lock lock(fork_safe_mutex());
    this->state().closing = true;
    state = state_;
    for (const auto& request : state->live) request->cancelled_.store(true, std::memory_order_relaxed);
    worker = std::move(state->worker);
  }
  state->event.notify();
  if (worker.joinable()) {
    worker.join();
  } else {
    const Lock lock(state->stepping);
    state->end_all(FinishReason::kCancelled);
  }
  state->cache.close();
}

// --- What the worker does -------------------------------------------------------------------------------------------

// Returns false if there was nothing to compute.
bool Engine::State::step() {
  collect();
  begin_waiting();
  const std::vector<Scheduler::Part> parts = scheduler.plan(times.prompt_tokens());
  if (parts.empty()) return false;
  int64_t writers = 0, read = 0;
  for (const Scheduler::Part& part : parts) part.job->is_writing() ? ++writers : read += part.tokens;
  const Clock::time_point start = Clock::now();
  if (!forward(parts)) return true;
  const double seconds = seconds_since(start);
  times.add(writers, read, seconds);
  {
    const Lock lock(fork_safe_mutex());
    ++stats.steps;
    stats.prompt_tokens += read;
    stats.step_seconds += seconds;
  }
  sample(parts);
  return true;
}

// What nobody else has caught ends all requests, and the worker goes on.
bool Engine::State::step_or_fail() {
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
std::chrono::nanoseconds Engine::State::patience() const {
  std::chrono::nanoseconds patience = kLong;
  const auto look = [&](const std::unique_ptr<Job>& job) {
    const auto& deadline = job->request->options.deadline;
    if (deadline) patience = std::min<std::chrono::nanoseconds>(patience, *deadline - Clock::now());
  };
  std::for_each(scheduler.running().begin(), scheduler.running().end(), look);
  std::for_each(scheduler.waiting().begin(), scheduler.waiting().end(), look);
  return patience;
}

// New requests, those that end without a token, and those whose readers are slow.
void Engine::State::collect() {
  std::vector<std::pair<std::shared_ptr<Request>, std::vector<int32_t>>> fresh;
  std::vector<Job*> jobs;
  const auto add = [&](const std::unique_ptr<Job>& job) { jobs.push_back(job.get()); };
  {
    const Lock lock(fork_safe_mutex());
    for (auto& request : submitted) fresh.emplace_back(request, request->generated_);
    submitted.clear();
    for (const auto& job : scheduler.running()) {
      const Request& request = *job->request;
      job->paused = static_cast<int64_t>(request.generated_.size() - request.taken_) >= request.options.most_unread;
    }
  }
  for (auto& [request, generated] : fresh) {
    std::vector<int32_t> ids = request->options.prompt;
    ids.insert(ids.end(), generated.begin(), generated.end());
    SamplerConfig sampler = request->options.sampler;
    sampler.drawn += sampler.temperature > 0 ? generated.size() : 0;
    auto job = std::make_unique<Job>(
        Job{request, ++arrivals, KvTable(model->kv(), true), std::move(ids), std::make_unique<Sampler>(sampler)});
    job->reading = cache.look_up(root_of(*request), job->ids);
    scheduler.add(std::move(job));
  }
  std::for_each(scheduler.running().begin(), scheduler.running().end(), add);
  std::for_each(scheduler.waiting().begin(), scheduler.waiting().end(), add);
  const Clock::time_point now = Clock::now();
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
void Engine::State::begin_waiting() {
  while (Job* const job = scheduler.next_waiting()) {
    if (memory_is_short && !scheduler.running().empty()) break;
    cache.forget_gone_adapters();
    if (job->kv.length() == 0) {
      if (job->reading) cache.add(root_of(*job->request), *job->reading);
      job->reading.reset();
      const int64_t most = static_cast<int64_t>(job->ids.size()) - 1;  // one has to be computed for its logits
      const int64_t cached = cache.restore(root_of(*job->request), job->ids, most, job->kv);
      job->kept_blocks = cached / kKvBlockTokens;
      if (cached > 0 && job->request->generated_.empty()) {
        job->request->cached_tokens_.store(cached, std::memory_order_relaxed);
        const Lock lock(fork_safe_mutex());
        stats.cached_tokens += cached;
      }
    }
    const int64_t needed = model->kv().layout().bytes_of(static_cast<int64_t>(job->ids.size()) + 1) - job->kv.bytes();
    const int64_t missing = needed - model->kv().room();
    if (missing > 0 && !scheduler.running().empty() && !cache.give_up(missing)) break;
    scheduler.begin(job);
  }
  const int64_t cached_bytes = cache.bytes();
  const Lock lock(fork_safe_mutex());
  stats.running = static_cast<int64_t>(scheduler.running().size());
  stats.waiting = static_cast<int64_t>(scheduler.waiting().size());
  stats.prefix_cache_bytes = cached_bytes;
}

// Returns false if no request has advanced.
bool Engine::State::forward(const std::vector<Scheduler::Part>& parts) {
  Batch batch;
  rows.assign(parts.size(), -1);
  int64_t count = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Scheduler::Part& part = parts[i];
    const Request& request = *part.job->request;
    const bool is_last = part.tokens == part.job->remaining();
    if (is_last) rows[i] = count++;
    batch.segments.push_back({&part.job->kv,
                              {part.job->next(part.tokens)},
                              is_last ? LogitsWanted::kLast : LogitsWanted::kNone,
                              request.options.adapter.get(),
                              &request.cancelled_});
  }
  try {
    const size_t bytes = static_cast<size_t>(count * model->config().vocab_size) * sizeof(float);
    if (logits.size() < bytes) logits = AlignedBuffer(bytes);
    batch.logits = logits.as<float>();
    const std::vector<bool> cancelled = model->forward(batch);
    for (size_t i = 0; i < parts.size(); ++i) {
      if (cancelled[i]) rows[i] = -1;
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

void Engine::State::make_room(const Error& error) {
  if (cache.give_up(std::max<int64_t>(cache.bytes() / 4, 1)) || cache.abandon()) return;
  bool was_read = false;  // from the disk, for texts that wait
  for (const auto& job : scheduler.waiting()) {
    if (!job->reading || !job->reading->is_done) continue;
    was_read = was_read || !job->reading->found.empty();
    job->reading.reset();
  }
  if (was_read) return;
  memory_is_short = true;
  if (Job* const job = scheduler.victim()) {
    job->kv = KvTable(model->kv(), true);
    job->kept_blocks = 0;
    scheduler.put_back(job);
    const Lock lock(fork_safe_mutex());
    ++stats.preemptions;
    return;
  }
  end(scheduler.running().front().get(), FinishReason::kFailed, &error);
}

// The next token of each request that has logits.
void Engine::State::sample(const std::vector<Scheduler::Part>& parts) {
  struct Chosen {
    Job* job;
    int32_t id;
    FinishReason reason;
  };
  std::vector<Chosen> chosen;
  std::vector<std::pair<Job*, Error>> failed;
  const ModelConfig& config = model->config();
  const size_t vocab = static_cast<size_t>(config.vocab_size);
  for (size_t i = 0; i < parts.size(); ++i) {
    Job* const job = parts[i].job;
    job->kept_blocks = cache.keep(root_of(*job->request), job->ids, job->kv, job->kept_blocks, false);
    if (rows[i] < 0) continue;
    try {
      const float* const row = logits.as<float>() + static_cast<size_t>(rows[i]) * vocab;
      const int32_t id = job->sampler->sample({row, vocab}, job->ids);
      const RequestOptions& options = job->request->options;
      const bool is_end = std::find(options.end_ids.begin(), options.end_ids.end(), id) != options.end_ids.end();
      FinishReason reason = FinishReason::kNone;
      if (!is_end) job->ids.push_back(id);
      const auto generated = static_cast<int64_t>(job->ids.size() - options.prompt.size());
      if (is_end) {
        reason = FinishReason::kStop;
      } else if (generated >= options.max_tokens) {
        reason = FinishReason::kLength;
      } else if (job->kv.length() >= config.max_context) {
        reason = FinishReason::kContext;
      }
      chosen.push_back({job, id, reason});
    } catch (const Error& error) {
      failed.emplace_back(job, error);
    }
  }
  {
    const Lock lock(fork_safe_mutex());
    for (const Chosen& one : chosen) {
      if (one.reason == FinishReason::kStop) continue;
      one.job->request->generated_.push_back(one.id);
      ++stats.generated_tokens;
    }
  }
  for (const Chosen& one : chosen) {
    one.job->request->options.news->notify();
    if (one.reason != FinishReason::kNone) end(one.job, one.reason);
  }
  for (const auto& [job, error] : failed) end(job, FinishReason::kFailed, &error);
}

void Engine::State::end(Job* job, FinishReason reason, const Error* error) {
  const std::unique_ptr<Job> owned = scheduler.remove(job);
  memory_is_short = false;
  Request& request = *owned->request;
  if (reason != FinishReason::kFailed) cache.keep(root_of(request), owned->ids, owned->kv, owned->kept_blocks, true);
  owned->kv = KvTable(model->kv());  // before the reader knows
  {
    const Lock lock(fork_safe_mutex());
    request.reason_ = reason;
    if (error) request.error_ = *error;
    request.engine_event_ = nullptr;
    live.erase(std::find(live.begin(), live.end(), owned->request));
    stats.running = static_cast<int64_t>(scheduler.running().size());
    stats.waiting = static_cast<int64_t>(scheduler.waiting().size());
  }
  request.options.news->notify();
}

void Engine::State::end_all(FinishReason reason, const Error* error) {
  collect();
  while (!scheduler.running().empty()) end(scheduler.running().front().get(), reason, error);
  while (!scheduler.waiting().empty()) end(scheduler.waiting().front().get(), reason, error);
}

void Engine::State::fail_parts(const std::vector<Scheduler::Part>& parts, const Error& error) {
  for (const Scheduler::Part& part : parts) end(part.job, FinishReason::kFailed, &error);
}

}  // namespace gemlet
