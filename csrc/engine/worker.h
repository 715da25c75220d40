// Computes the steps of an engine (see engine.h) in one process.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/event.h"
#include "base/fork_mutex.h"
#include "engine/draft_model.h"
#include "engine/engine_options.h"
#include "engine/job.h"
#include "engine/logprobs.h"
#include "engine/prefix_cache.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/step_times.h"
#include "model/model.h"

namespace gemlet {

// Members that change under fork_safe_mutex() are complete in a forked process. Only the worker uses the others.
struct Worker {
 private:
  const std::shared_ptr<Model> model_;

 public:
  Worker(const std::shared_ptr<Model>& of, const EngineOptions& options);

  // Under fork_safe_mutex().
  const uint32_t forks = fork_generation();
  std::vector<std::shared_ptr<Request>> live;       // all that have not ended
  std::vector<std::shared_ptr<Request>> submitted;  // the requests that the worker has not seen yet
  EngineStats stats;
  bool closing = false;
  bool has_thread = false;
  std::thread thread;

  Event event;  // tells the worker that there may be work

  // Returns false if there was nothing to compute. What nobody else has caught ends all requests.
  bool step_or_fail();
  // The time that the worker may wait: until the next deadline of a request that does not advance.
  std::chrono::nanoseconds patience() const;
  void end_all(FinishReason reason, const Error* error = nullptr);
  void close();  // closes the caches of the worker

  std::mutex stepping;  // if the system grants no thread for a worker, callers of wait() take turns
  PrefixCache cache;    // any thread may use it

 private:
  using Parts = std::vector<Scheduler::Part>;
  struct Ends {
    std::vector<std::pair<Job*, FinishReason>> ended;
    std::vector<std::pair<Job*, Error>> failed;
  };

  bool step();
  void collect();
  void choose_held();
  void begin_waiting();
  int64_t draft(const Parts& parts, int64_t read);
  void show_guesses(const Parts& parts);
  int64_t most_drafted(const Job& job) const;
  int64_t draft_with_model(const Parts& parts, DraftChoice found);  // this and the next ones are in worker_drafts.cpp
  void read_ahead(const std::vector<Job*>& behind, int64_t rows, double pass);
  template <typename Work>
  bool make_guesses(const Work& work);
  int64_t guess(std::span<const ModelDrafts> chosen, const std::vector<Job*>& jobs);
  bool forward(const Parts& parts);
  void make_room(const Error& error);
  bool put_slow_reader_back();
  void put_back(Job* job);
  void hand_out(const Parts& parts);  // this and the next ones are in worker_tokens.cpp
  template <typename Next>
  static void hand_out(Job* job, Ends& ends, Next next);
  void choose_together(const Parts& parts);
  static void notify(const Parts& parts);
  static PrefixCache::Root root_of(const Request& request) {
    return {request.options.adapter, request.options.cache_salt};
  }
  static std::shared_ptr<const TokenMask> mask_of(const Job& job);
  FinishReason next_tokens(Job& job, const float* logits, bool held);
  void keep_states(Job& job, int64_t row) const;
  FinishReason next_token(Job& job, const float* logits, const std::shared_ptr<const TokenMask>& mask, bool held);
  FinishReason next_rows(Job& job, const float* values, int64_t tokens);
  int64_t row_width() const;
  void count_step(Request& request, bool wrote) const;
  void end(Job* job, FinishReason reason, const Error* error = nullptr);
  void end(const Ends& ends);
  void fail_parts(const Parts& parts, const Error& error);
  static double seconds_since(RequestOptions::Clock::time_point start) {
    return std::chrono::duration<double>(RequestOptions::Clock::now() - start).count();
  }

  const EngineOptions options_;
  Scheduler scheduler_;
  StepTimes times_;
  LogprobReader logprobs_;
  bool memory_is_short_ = false;  // no request begins before another has ended
  bool drafts_wait_ = false;      // memory ran out: the next step guesses nothing
  double slowed_ = 1;             // the factor by which guesses made the last step longer
  std::unique_ptr<DraftModel> draft_model_;
  double model_chance_ = 0.6;  // the chance that a guess of it is right, over all texts
  double model_seconds_ = 0;   // time of its guessing passes in this step
  double read_apart_ = 0;      // time of its reading passes in this step
  double pass_seconds_ = 0;    // time of one guessing pass; 0: not known
  double read_seconds_ = 0;    // time for each token that it reads; 0: not known
  double credit_ = 0;          // seconds that it may lose by being tried
  AlignedBuffer outputs_;      // the results of the last pass: rows of logits, or embeddings
  std::vector<float> states_;  // [rows, hidden] of these rows of logits, for a drafter that takes them
  std::vector<int64_t> rows_;  // the first row in outputs_ of each part of the last pass; -1: the part has none
  uint64_t arrivals_ = 0;
  RequestOptions::Clock::time_point step_start_;
};

}  // namespace gemlet
