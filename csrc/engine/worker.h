// The worker of an engine (see engine.h). It runs the engine's steps in one process.
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

// Members that change under fork_safe_mutex() are consistent in a forked process. The worker alone uses all others.
struct Worker {
 private:
  const std::shared_ptr<Model> model_;

 public:
  Worker(const std::shared_ptr<Model>& of, const EngineOptions& options);

  // These members change only under fork_safe_mutex():
  const uint32_t forks = fork_generation();
  std::vector<std::shared_ptr<Request>> live;       // all requests that have not ended
  std::vector<std::shared_ptr<Request>> submitted;  // the requests that the worker has not seen yet
  EngineStats stats;
  bool closing = false;
  bool has_thread = false;
  std::thread thread;

  Event event;  // notified when the worker may have work

  // Runs one step. Returns false if there was nothing to compute. An error that concerns no single request ends all
  // requests.
  bool step_or_fail();
  // How long the worker may sleep: until the next deadline of a request that does not advance.
  std::chrono::nanoseconds patience() const;
  void end_all(FinishReason reason, const Error* error = nullptr);
  void close();  // closes the prefix caches

  std::mutex stepping;  // callers of wait() take turns if the system grants no thread for the worker
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
  // This function and the next three are in worker_drafts.cpp.
  int64_t draft_with_model(const Parts& parts, DraftChoice found);
  void read_ahead(const std::vector<Job*>& behind, int64_t rows, double pass);
  template <typename Work>
  bool make_guesses(const Work& work);
  int64_t guess(std::span<const ModelDrafts> chosen, const std::vector<Job*>& jobs);
  bool forward(const Parts& parts);
  void make_room(const Error& error);
  bool put_slow_reader_back();
  void put_back(Job* job);
  void hand_out(const Parts& parts);  // this function and those below are in worker_tokens.cpp
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
  bool memory_is_short_ = false;  // memory ran out: no request starts until another one has ended
  bool drafts_wait_ = false;      // memory ran out: the next step uses no draft tokens
  double slowed_ = 1;             // the time of the last step, as a multiple of its time without draft tokens
  std::unique_ptr<DraftModel> draft_model_;
  double model_chance_ = 0.6;  // the share of the draft model's tokens that are accepted, over all requests
  double model_seconds_ = 0;   // the draft model's time in this step, for drafts
  double read_apart_ = 0;      // the draft model's time in this step, for prefill
  double pass_seconds_ = 0;    // the time of one decoding pass of the draft model; 0: not known yet
  double read_seconds_ = 0;    // the draft model's prefill time for each token; 0: not known yet
  double credit_ = 0;          // seconds that trials of the draft model may cost
  AlignedBuffer outputs_;      // the results of the last pass: rows of logits, or embeddings
  // The model's hidden states [rows, hidden] for the logits rows of the last pass. Only an assistant needs them.
  std::vector<float> states_;
  std::vector<int64_t> rows_;  // for each part of the last pass, its first row in outputs_; -1: it has no rows
  uint64_t arrivals_ = 0;
  RequestOptions::Clock::time_point step_start_;
};

}  // namespace gemlet
