#include "engine/sequence.h"

#include <algorithm>
#include <mutex>

#include "base/error.h"

namespace gemlet {

Sequence::Sequence(std::shared_ptr<Model> model, std::shared_ptr<const Adapter> adapter)
    : model_(std::move(model)), adapter_(std::move(adapter)), kv_(model_->kv_layout(), model_->backend()) {
  if (model_->closed()) fail(ErrorCode::kClosed, "the model is closed; load it again");
  if (model_->config().bidirectional) {
    fail(ErrorCode::kUnsupported, "the model makes embeddings of texts and cannot continue one");
  }
  if (adapter_ && !adapter_->belongs_to(*model_)) {
    fail(ErrorCode::kInvalidRequest, "the adapter belongs to another model; load it with this one");
  }
}

Sequence::~Sequence() {
  if (mutex_.torn()) leave_torn_behind();
}

void Sequence::check_whole() const {
  if (mutex_.torn()) {
    fail(ErrorCode::kClosed,
         "another thread was using the sequence when this process was forked from its own; begin a new one");
  }
}

void Sequence::leave_torn_behind() {
  leave_behind(adapter_);
  leave_behind(kv_);
  leave_behind(ids_);
  leave_behind(logits_);
}

void Sequence::extend(std::span<const int32_t> ids, LogitsWanted wanted, const TapSink* taps) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_whole();
  const ModelConfig& config = model_->config();
  if (closed_) fail(ErrorCode::kClosed, "the sequence is closed");
  if (ids.empty()) fail(ErrorCode::kInvalidRequest, "there are no token ids to append; give at least one");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config.vocab_size) {
      fail(ErrorCode::kInvalidRequest, "token id ", ids[i], " at position ", i,
           " is out of range: the vocabulary has ids 0 to ", config.vocab_size - 1);
    }
  }
  if (static_cast<int64_t>(ids_.size() + ids.size()) > config.max_context) {
    fail(ErrorCode::kContextLength, static_cast<int64_t>(ids_.size() + ids.size()),
         " tokens do not fit the context of ", config.max_context, " tokens; shorten the prompt");
  }
  const int64_t total = static_cast<int64_t>(ids.size());
  const int64_t rows = wanted == LogitsWanted::kNone ? 0 : wanted == LogitsWanted::kLast ? 1 : total;
  const size_t bytes = static_cast<size_t>(rows * config.vocab_size) * sizeof(float);
  logits_rows_ = 0;
  if (logits_.size() < bytes) {
    logits_ = AlignedBuffer();
    logits_ = AlignedBuffer(bytes);
  }
  cancel_.store(false, std::memory_order_relaxed);
  ids_.reserve(ids_.size() + ids.size());
  for (int64_t done = 0; done < total;) {
    const int64_t count = std::min(kChunkTokens, total - done);
    Batch batch;
    batch.segments = {{&kv_, ids.subspan(static_cast<size_t>(done), static_cast<size_t>(count)), LogitsWanted::kNone,
                       adapter_.get()}};
    batch.cancel = &cancel_;
    batch.taps = taps;
    Segment& segment = batch.segments[0];
    if (wanted == LogitsWanted::kAll) {
      segment.wanted = wanted;
      batch.logits = logits_.as<float>() + done * config.vocab_size;
    } else if (wanted == LogitsWanted::kLast && done + count == total) {
      segment.wanted = wanted;
      batch.logits = logits_.as<float>();
    }
    model_->forward(batch);
    ids_.insert(ids_.end(), segment.ids.begin(), segment.ids.end());
    done += count;
  }
  logits_rows_ = rows;
}

int32_t Sequence::sample(Sampler& sampler) const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_whole();
  if (logits_rows_ == 0) {
    fail(ErrorCode::kInvalidRequest, "there are no logits to sample from; extend with logits='last' first");
  }
  const size_t vocab = static_cast<size_t>(model_->config().vocab_size);
  const float* last = reinterpret_cast<const float*>(logits_.data()) + static_cast<size_t>(logits_rows_ - 1) * vocab;
  return sampler.sample({last, vocab}, ids_);
}

int64_t Sequence::length() const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_whole();
  return static_cast<int64_t>(ids_.size());
}

std::vector<int32_t> Sequence::token_ids() const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_whole();
  return ids_;
}

std::vector<float> Sequence::logits() const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_whole();
  const float* const first = reinterpret_cast<const float*>(logits_.data());
  return std::vector<float>(first, first + logits_rows_ * model_->config().vocab_size);
}

int64_t Sequence::cache_bytes() const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_whole();
  return kv_.bytes();
}

void Sequence::close() {
  const std::lock_guard<ForkMutex> lock(mutex_);
  if (mutex_.torn()) leave_torn_behind();
  mutex_.mend();
  closed_ = true;
  kv_ = KvCache(model_->kv_layout(), model_->backend());
  adapter_.reset();
  logits_ = AlignedBuffer();
  logits_rows_ = 0;
}

}  // namespace gemlet
