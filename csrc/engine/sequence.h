// One context: its tokens, their keys and values, and the logits of the last extension.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "base/fork_mutex.h"
#include "engine/sampler.h"
#include "model/adapter.h"
#include "model/model.h"

namespace gemlet {

// In a forked process, a sequence that another thread was using at that moment is lost: all but close() throws kClosed.
class Sequence {
 public:
  // Bound to the adapter (null: none) for its life: keys and values depend on it. Throws kClosed, and kInvalidRequest
  // for an adapter of another model.
  explicit Sequence(std::shared_ptr<Model> model, std::shared_ptr<const Adapter> adapter = nullptr);
  ~Sequence();

  // Appends tokens, in chunks of kChunkTokens. Throws before anything changes if an id is out of range or the
  // context would overflow; if cancelled midway, the chunks already done stay.
  void extend(std::span<const int32_t> ids, LogitsWanted wanted, const TapSink* taps = nullptr);

  // Next token from the last row of logits. Throws kInvalidRequest if the last extension kept none.
  int32_t sample(Sampler& sampler) const;

  int64_t length() const;
  std::vector<int32_t> token_ids() const;
  std::vector<float> logits() const;  // of the last extension, [rows, vocab]
  const Model& model() const { return *model_; }
  int64_t cache_bytes() const;

  // From any thread: a running extend() ends with Error{kCancelled} at the next layer. Later extends work again.
  void cancel() { cancel_.store(true, std::memory_order_relaxed); }
  void close();

 private:
  void check_whole() const;
  void leave_torn_behind();

  mutable ForkMutex mutex_;  // of everything below but cancel_: calls from several threads take turns
  std::shared_ptr<Model> model_;
  std::shared_ptr<const Adapter> adapter_;
  KvCache kv_;
  std::vector<int32_t> ids_;
  AlignedBuffer logits_;
  int64_t logits_rows_ = 0;
  std::atomic<bool> cancel_{false};
  bool closed_ = false;
};

}  // namespace gemlet
