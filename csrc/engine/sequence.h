// A text that one caller extends: its tokens, their keys and values, and the logits of the last extension.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/fork_mutex.h"
#include "engine/sampler.h"
#include "model/adapter.h"
#include "model/kv_table.h"
#include "model/model.h"

namespace gemlet {

// In a forked process, a sequence that another thread was using at that moment is lost: everything except close()
// throws kClosed.
class Sequence {
 public:
  // The sequence keeps this adapter (null: none), because its keys and values depend on it. Throws kClosed, and
  // kInvalidRequest for an adapter of another model.
  explicit Sequence(std::shared_ptr<Model> model, std::shared_ptr<const Adapter> adapter = nullptr);
  ~Sequence();

  // Appends tokens, in chunks of kChunkTokens. A chunk ends before a span that it would cut, and a longer span is a
  // chunk of its own. Throws before anything changes if the tokens are not what TokenRun says or if the context would
  // overflow. If it is cancelled midway, the chunks that were done stay.
  void extend(const TokenRun& tokens, LogitsWanted wanted, const TapSink* taps = nullptr);

  // Another sequence with the same tokens and logits. The two share their keys and values.
  std::unique_ptr<Sequence> fork() const;
  // Another sequence with the first `blocks` * kKvBlockTokens tokens, without logits. It shares the keys and values of
  // these tokens. Throws kInvalidRequest if there are fewer tokens, if a window has dropped some that it needs, or if a
  // span continues after them.
  std::unique_ptr<Sequence> prefix(int64_t blocks) const;

  // The next token, from the last row of logits. Throws kInvalidRequest if the last extension kept none.
  int32_t sample(Sampler& sampler) const;

  int64_t length() const;
  std::vector<int32_t> token_ids() const;
  std::vector<float> logits() const;  // the logits of the last extension, [rows, vocab]
  const Model& model() const { return *model_; }
  int64_t cache_bytes() const;

  // Ends a running extend() with Error{kCancelled} at the next layer. Any thread may call it. Later extends work again.
  void cancel() { cancel_.store(true, std::memory_order_relaxed); }
  void close();

 private:
  void check_open() const;
  void check_whole() const;
  void leave_torn_behind();
  void make_room_for_logits(int64_t rows);

  mutable ForkMutex mutex_;  // guards all members below except cancel_: one call runs at a time
  std::shared_ptr<Model> model_;
  std::shared_ptr<const Adapter> adapter_;
  KvTable kv_;
  std::vector<int32_t> ids_;
  std::vector<TokenSpan> spans_;  // spans of all tokens so far, if the model has layers that look ahead in them
  std::shared_ptr<AlignedBuffer> logits_;  // forks share it; a shared buffer is not changed
  int64_t logits_rows_ = 0;
  std::atomic<bool> cancel_{false};
  bool closed_ = false;
};

}  // namespace gemlet
