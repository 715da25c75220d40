#include "engine/sequence.h"

#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "engine/media.h"

namespace gemlet {
namespace {

// The end of a chunk that begins at `first`. No chunk cuts a span.
int64_t chunk_end(const TokenRun& tokens, int64_t first) {
  const int64_t end = whole_tokens(tokens.spans, std::min(first + kChunkTokens, tokens.rows()));
  return end > first ? end : next_whole(tokens.spans, first);
}

}  // namespace

Sequence::Sequence(std::shared_ptr<Model> model, std::shared_ptr<const Adapter> adapter)
    : model_(std::move(model)), adapter_(std::move(adapter)), kv_(model_->kv()) {
  if (model_->closed()) fail(ErrorCode::kClosed, "the model is closed; load it again");
  if (model_->config().bidirectional) {
    fail(ErrorCode::kUnsupported, "the model makes embeddings of texts and cannot continue one");
  }
  if (adapter_) adapter_->check_model(*model_);
}

void Sequence::check_open() const {
  check_whole();
  if (closed_) fail(ErrorCode::kClosed, "the sequence is closed");
}

// The memory is kept for the next extension, unless another sequence shares it.
void Sequence::make_room_for_logits(int64_t rows) {
  logits_rows_ = 0;
  const size_t bytes = static_cast<size_t>(rows * model_->config().vocab_size) * sizeof(float);
  if (logits_ && logits_.use_count() == 1 && logits_->size() >= bytes) return;
  logits_.reset();
  logits_ = std::make_shared<AlignedBuffer>(bytes);
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
  leave_behind(spans_);
  leave_behind(logits_);
}

void Sequence::extend(const TokenRun& tokens, LogitsWanted wanted, const TapSink* taps) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_open();
  const ModelConfig& config = model_->config();
  const int64_t before = static_cast<int64_t>(ids_.size()), total = tokens.rows();
  if (total == 0) fail(ErrorCode::kInvalidRequest, "there are no token ids to append; give at least one");
  tokens.check(config);
  if (before + total > config.max_context) {
    fail(ErrorCode::kContextLength, before + total, " tokens do not fit the context of ", config.max_context,
         " tokens; shorten the prompt");
  }
  TokenRun run = tokens;
  if (!config.has_spans()) run.spans = {};
  const int64_t rows = wanted == LogitsWanted::kNone ? 0 : wanted == LogitsWanted::kLast ? 1 : total;
  make_room_for_logits(rows);
  cancel_.store(false, std::memory_order_relaxed);
  ids_.reserve(static_cast<size_t>(before + total));
  spans_.reserve(spans_.size() + run.spans.size());
  for (int64_t done = 0; done < total;) {
    const int64_t end = chunk_end(run, done);
    const TokenPart chunk(run, done, end, config.hidden_size);
    Batch batch;
    batch.segments = {{&kv_, chunk.run(), LogitsWanted::kNone, adapter_.get(), &cancel_}};
    batch.taps = taps;
    Segment& segment = batch.segments[0];
    if (wanted == LogitsWanted::kAll) {
      segment.wanted = wanted;
      batch.logits = logits_->as<float>() + done * config.vocab_size;
    } else if (wanted == LogitsWanted::kLast && end == total) {
      segment.wanted = wanted;
      batch.logits = logits_->as<float>();
    }
    if (model_->forward(batch)[0]) fail(ErrorCode::kCancelled, "cancelled");
    ids_.insert(ids_.end(), segment.tokens.ids.begin(), segment.tokens.ids.end());
    for (const TokenSpan& span : segment.tokens.spans)
      spans_.push_back({before + done + span.begin, before + done + span.end});
    done = end;
  }
  logits_rows_ = rows;
}

std::unique_ptr<Sequence> Sequence::fork() const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_open();
  auto copy = std::make_unique<Sequence>(model_, adapter_);
  copy->kv_ = kv_.fork();
  copy->ids_ = ids_;
  copy->spans_ = spans_;
  copy->logits_ = logits_;
  copy->logits_rows_ = logits_rows_;
  return copy;
}

std::unique_ptr<Sequence> Sequence::prefix(int64_t blocks) const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_open();
  const int64_t tokens = blocks * kKvBlockTokens;
  if (blocks < 0 || blocks > kv_.length() / kKvBlockTokens) {
    fail(ErrorCode::kInvalidRequest, "the first ", blocks, " blocks of ", kKvBlockTokens,
         " tokens were asked for, but the ", "sequence has ", kv_.length(), " tokens");
  }
  auto copy = std::make_unique<Sequence>(model_, adapter_);
  for (const TokenSpan& span : spans_) {
    if (span.begin < tokens && tokens < span.end) {
      fail(ErrorCode::kInvalidRequest, "the first ", blocks, " blocks of ", kKvBlockTokens,
           " tokens end inside a span, whose tokens see later ones");
    }
    if (span.end <= tokens) copy->spans_.push_back(span);
  }
  for (int64_t i = 0; i < blocks; ++i) copy->kv_.append(kv_.share(i));
  if (!copy->kv_.complete()) {
    fail(ErrorCode::kInvalidRequest, "a sliding window has dropped tokens that a sequence of ", tokens,
         " tokens needs");
  }
  copy->ids_.assign(ids_.begin(), ids_.begin() + tokens);
  return copy;
}

int32_t Sequence::sample(Sampler& sampler) const {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_whole();
  if (logits_rows_ == 0) {
    fail(ErrorCode::kInvalidRequest, "there are no logits to sample from; extend with logits='last' first");
  }
  const size_t vocab = static_cast<size_t>(model_->config().vocab_size);
  const float* last = logits_->as<float>() + static_cast<size_t>(logits_rows_ - 1) * vocab;
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
  if (logits_rows_ == 0) return {};
  const float* const first = logits_->as<float>();
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
  kv_ = KvTable(model_->kv());
  adapter_.reset();
  logits_.reset();
  logits_rows_ = 0;
}

}  // namespace gemlet
