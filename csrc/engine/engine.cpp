#include "engine/engine.h"

#include <algorithm>
#include <mutex>
#include <system_error>
#include <thread>

#include "base/fork_mutex.h"
#include "engine/worker.h"

namespace gemlet {
namespace {

using Lock = std::lock_guard<std::mutex>;

}  // namespace

Engine::Engine(std::shared_ptr<Model> model, EngineOptions options)
    : model_(std::move(model)), options_(options), worker_(std::make_shared<Worker>(model_, options)) {
  KvPool& kv = model_->kv();
  const int64_t own = kv.layout().peak_bytes();
  kv.set_limit(options_.kv_bytes > INT64_MAX - own ? INT64_MAX : own + options_.kv_bytes);
  if (options_.drafter) {
    check_drafter(*options_.drafter, *model_);
    KvPool& guessed = options_.drafter->kv();
    const int64_t whole = guessed.layout().peak_bytes(), more = options_.drafter_kv_bytes;
    guessed.set_limit(more > INT64_MAX - whole ? INT64_MAX : whole + more);
  }
}

Engine::~Engine() { close(); }

// The worker of this process, under fork_safe_mutex(). After a fork: a new one, with the requests of the old.
Worker& Engine::worker() {
  if (worker_->forks != fork_generation()) {
    auto fresh = std::make_shared<Worker>(model_, options_);
    fresh->live = worker_->live;
    fresh->submitted = worker_->live;
    fresh->closing = worker_->closing;
    for (const auto& request : fresh->live) request->engine_event_ = &fresh->event;
    leave_behind(worker_);  // the parent's worker may have been changing it
    worker_ = std::move(fresh);
  }
  return *worker_;
}

std::shared_ptr<Request> Engine::submit(RequestOptions options) {
  const ModelConfig& config = model_->config();
  if (config.bidirectional != (options.wanted == Wanted::kEmbedding)) {
    fail(ErrorCode::kUnsupported, config.bidirectional ? "the model makes embeddings of texts and cannot continue one"
                                                       : "the model continues texts and makes no embeddings");
  }
  if (options.prompt.empty()) fail(ErrorCode::kInvalidRequest, "there are no token ids to continue; give at least one");
  for (const auto& [first, media] : options.media) {
    if (media->hidden_size != config.hidden_size) {
      fail(ErrorCode::kInvalidRequest, "the rows for token ", first, " have ", media->hidden_size,
           " numbers each, expected ", config.hidden_size);
    }
  }
  SoftText(options.media, config).run(options.prompt).check(config);
  if (static_cast<int64_t>(options.prompt.size()) > config.max_context) {
    fail(ErrorCode::kContextLength, options.prompt.size(), " tokens do not fit the context of ", config.max_context,
         " tokens; shorten the prompt");
  }
  if (options.first_row < 0 || options.first_row >= static_cast<int64_t>(options.prompt.size())) {
    fail(ErrorCode::kInvalidRequest, "first_row is ", options.first_row, ", expected 0 to ", options.prompt.size() - 1);
  }
  if (options.max_tokens < 1) fail(ErrorCode::kInvalidRequest, "max_tokens is ", options.max_tokens, ", expected >= 1");
  if (options.most_unread < 1)
    fail(ErrorCode::kInvalidRequest, "most_unread is ", options.most_unread, ", expected >= 1");
  if (options.adapter) options.adapter->check_model(*model_);
  const Sampler checked(options.sampler);
  if (model_->closed()) fail(ErrorCode::kClosed, "the model is closed; load it again");
  auto request = std::make_shared<Request>(std::move(options));

  const Lock lock(fork_safe_mutex());
  Worker& worker = this->worker();
  if (worker.closing) fail(ErrorCode::kClosed, "the engine is closed; load the model again");
  request->engine_event_ = &worker.event;
  worker.live.push_back(request);
  worker.submitted.push_back(request);
  start(worker);
  worker.event.notify();
  return request;
}

void Engine::start(Worker& worker) {
  if (worker.has_thread) return;
  try {
    worker.thread = std::thread(&Engine::work, worker_);
    worker.has_thread = true;
  } catch (const std::system_error&) {  // wait() computes instead
  }
}

void Engine::work(const std::shared_ptr<Worker>& worker) {
  for (;;) {
    const uint32_t seen = worker->event.value();
    {
      const Lock lock(fork_safe_mutex());
      if (worker->closing) break;
    }
    if (!worker->step_or_fail()) worker->event.wait(seen, worker->patience());
  }
  worker->end_all(FinishReason::kCancelled);
}

void Engine::wait(const Event& news, uint32_t seen, std::chrono::nanoseconds patience) {
  if (news.value() != seen) return;
  std::shared_ptr<Worker> idle;
  {
    const Lock lock(fork_safe_mutex());
    Worker& worker = this->worker();
    if (!worker.live.empty()) start(worker);
    if (!worker.has_thread) idle = worker_;
  }
  if (idle && idle->stepping.try_lock()) {
    const Lock lock(idle->stepping, std::adopt_lock);
    if (idle->step_or_fail()) return;
  }
  news.wait(seen, patience);
}

int64_t Engine::row_width() const {
  const ModelConfig& config = model_->config();
  return config.bidirectional ? config.embedding_size() : config.vocab_size;
}

EngineStats Engine::stats() const {
  const Lock lock(fork_safe_mutex());
  EngineStats stats = worker_->stats;
  const auto now = RequestOptions::Clock::now();
  for (const auto& request : worker_->live) {
    if (request->began_) continue;
    stats.longest_wait = std::max(stats.longest_wait, std::chrono::duration<double>(now - request->submitted_).count());
  }
  worker_->cache.count(stats.disk_read_bytes, stats.disk_written_bytes);
  stats.kv_bytes = model_->kv().used_bytes();
  stats.kv_room_bytes = model_->kv().room();
  stats.bytes_read = model_->bytes_read();
  return stats;
}

std::shared_ptr<PrefixCache> Engine::prefix_cache() {
  const Lock lock(fork_safe_mutex());
  Worker& worker = this->worker();
  if (worker.closing) fail(ErrorCode::kClosed, "the engine is closed; load the model again");
  return {worker_, &worker.cache};
}

void Engine::close() {
  std::shared_ptr<Worker> worker;
  std::thread thread;
  {
    const Lock lock(fork_safe_mutex());
    this->worker().closing = true;
    worker = worker_;
    for (const auto& request : worker->live) request->cancelled_.store(true, std::memory_order_relaxed);
    thread = std::move(worker->thread);
  }
  worker->event.notify();
  if (thread.joinable()) {
    thread.join();
  } else {
    const Lock lock(worker->stepping);
    worker->end_all(FinishReason::kCancelled);
  }
  worker->close();
}

}  // namespace gemlet
