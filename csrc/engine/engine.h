// The engine of a model: many requests advance together, one step after the other. One worker thread computes the
// steps. It never needs Python's lock. Any number of threads may submit requests and take their tokens.
//
// One step:
//   1. collect: requests that were cancelled, or whose time is over, end; others begin while there is room.
//   2. plan: the scheduler says how many tokens each request advances by.
//   3. forward: one pass of the model over all of them. If memory for keys and values runs out, first the prefix
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

  // Throws kInvalidRequest, kContextLength, kUnsupported and kClosed before anything begins.
  std::shared_ptr<Request> submit(RequestOptions options);

  // Waits until `news` has another value than `seen`, at most for `patience`. If the system grants no thread for the
  // worker, it computes a step instead.
  void wait(const Event& news, uint32_t seen, std::chrono::nanoseconds patience);

  EngineStats stats() const;
  int64_t row_width() const;  // width of what a request gets besides tokens: the vocabulary, or an embedding

  // The engine's prefix cache, in this process.
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
