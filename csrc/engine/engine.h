// The engine of a model: many requests advance together, one step after the other. One worker thread computes the
// steps. It never needs Python's lock. Any number of threads may submit requests and take their tokens.
//
// One step:
//   1. collect: requests that were cancelled, or whose time is over, end; others begin while there is room.
//   2. plan: the scheduler says how many tokens each request advances by.
//   3. forward: one pass of the model over all of them. Where memory for keys and values runs out, first the prefix
//      cache gives up its blocks, then the last request that came; it begins again later.
//   4. sample: each request whose text is read to its end gets its next token, which its reader can take.
//
// In a forked process the worker does not exist. The first call that needs one starts another, which computes the
// running requests again from their tokens.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/job.h"
#include "engine/prefix_cache.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "model/model.h"

namespace gemlet {

struct EngineOptions {
  int64_t most_running = 32;       // requests that advance together
  int64_t kv_bytes = INT64_MAX;    // for the keys and values of all texts, besides those of one as long as the context
  int64_t prefix_cache_bytes = 0;  // of memory for texts that have ended; 0: none
};

// Since the engine began. Times are in seconds.
struct EngineStats {
  int64_t running = 0, waiting = 0;  // requests, now
  int64_t steps = 0;
  int64_t prompt_tokens = 0;  // computed
  int64_t cached_tokens = 0;  // not computed, thanks to the prefix cache
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  int64_t prefix_cache_bytes = 0;  // now
  int64_t kv_bytes = 0;            // of blocks in use, now
  double step_seconds = 0;
};

class Engine {
 public:
  Engine(std::shared_ptr<Model> model, EngineOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Throws kInvalidRequest, kContextLength, kUnsupported and kClosed before anything begins.
  std::shared_ptr<Request> submit(RequestOptions options);

  // Waits until `news` has another value than `seen`, at most for `patience`. Where the system grants no thread for the
  // worker, it computes a step instead.
  void wait(const Event& news, uint32_t seen, std::chrono::nanoseconds patience);

  EngineStats stats() const;
  int64_t row_width() const;  // of what a request gets besides tokens: the vocabulary, or an embedding

  // Ends all requests with kCancelled and waits for the worker. What is submitted later throws kClosed.
  void close();

 private:
  struct State;  // of one process

  State& state();  // of this process
  void start_worker(State& state);
  static void work(const std::shared_ptr<State>& state);

  const std::shared_ptr<Model> model_;
  const EngineOptions options_;
  std::shared_ptr<State> state_;
};

}  // namespace gemlet
