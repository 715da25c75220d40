// The engine of a model. Many requests advance together, one step after the other. One worker thread computes the
// steps, without Python's lock. Any number of threads may submit requests and take their tokens.
//
// One step:
//   1. collect: Cancelled and timed-out requests end. Waiting requests start while there is room.
//   2. plan: The scheduler chooses the number of tokens by which each request advances.
//   3. forward: One forward pass computes these tokens. If memory for keys and values runs out, the prefix cache gives
//      up its blocks first. Then the last request that came gives up its memory and starts again later.
//   4. sample: Each request whose tokens are all computed gets its next token, which its reader can take.
//
// A forked process has no worker thread. The first call that needs a worker starts one, which computes the keys and
// values of the running requests again.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/engine_options.h"
#include "engine/request.h"
#include "model/model.h"

namespace gemlet {

struct Worker;

class Engine {
 public:
  Engine(std::shared_ptr<Model> model, EngineOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Throws kInvalidRequest, kContextLength, kUnsupported or kClosed before the request starts.
  std::shared_ptr<Request> submit(RequestOptions options);

  // Waits until the value of `news` differs from `seen`, but not longer than `patience`. If the system grants no thread
  // for the worker, the call computes a step instead.
  void wait(const Event& news, uint32_t seen, std::chrono::nanoseconds patience);

  EngineStats stats() const;
  int64_t row_width() const;  // the width of Request::Output::values: the vocabulary size, or the embedding size

  // The prefix cache of the engine's worker in this process.
  std::shared_ptr<PrefixCache> prefix_cache();

  // Ends all requests with kCancelled and waits for the worker. Later calls of submit() throw kClosed.
  void close();

 private:
  Worker& worker();  // the worker of this process
  void start(Worker& worker);
  static void work(const std::shared_ptr<Worker>& worker);

  const std::shared_ptr<Model> model_;
  const EngineOptions options_;
  std::shared_ptr<Worker> worker_;
};

}  // namespace gemlet
