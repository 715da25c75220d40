#include "model/model.h"

#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "formats/layout.h"
#include "model/forward.h"

namespace gemlet {

Model::Model(ModelConfig config, ModelWeights weights, std::vector<AlignedBuffer> storage,
             std::shared_ptr<const FileMapping> mapping, std::unique_ptr<Backend> backend, Format weight_format,
             KvFormat kv_format, ModelSize size)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      storage_(std::move(storage)),
      mapping_(std::move(mapping)),
      backend_(std::move(backend)),
      weight_format_(weight_format),
      size_(size),
      kv_layout_(config_, kv_format) {}

void Model::forward(std::span<const Segment> batch, const std::atomic<bool>* cancel, const TapSink* taps) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  if (closed_) fail(ErrorCode::kClosed, "the model is closed; load it again");
  if (mapping_) mapping_->check();
  for (const Segment& segment : batch) {
    for (const int32_t id : segment.ids) {
      if (id < 0 || id >= config_.vocab_size) {
        fail(ErrorCode::kInvalidRequest, "token id ", id, " is out of range: the vocabulary has ids 0 to ",
             config_.vocab_size - 1);
      }
    }
    if (config_.bidirectional ? segment.wanted != LogitsWanted::kNone || !segment.embedding || segment.kv->length() > 0
                              : segment.embedding != nullptr) {
      fail(ErrorCode::kInvalidRequest, "the model makes ", config_.bidirectional ? "embeddings of whole texts" : "text",
           ", nothing else");
    }
    const int64_t after = segment.kv->length() + static_cast<int64_t>(segment.ids.size());
    if (after > config_.max_context) {
      fail(ErrorCode::kContextLength, after, " tokens do not fit the context of ", config_.max_context,
           "; shorten the prompt, or load with a larger max_context if the model allows it");
    }
  }
  for (const Segment& segment : batch) segment.kv->reserve(static_cast<int64_t>(segment.ids.size()));
  const auto check_cancelled = [&] {
    if (cancel && cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
  };

  int64_t rows = 0;
  for (const Segment& segment : batch) rows += static_cast<int64_t>(segment.ids.size());
  backend_->begin_pass(rows);
  ForwardPass pass(*this, batch, taps);
  pass.embed();
  for (size_t index = 0; index < config_.layers.size(); ++index) {
    check_cancelled();
    pass.layer(index);
  }
  check_cancelled();
  config_.bidirectional ? pass.embeddings() : pass.logits();
  for (const Segment& segment : batch) segment.kv->commit(static_cast<int64_t>(segment.ids.size()));
}

int64_t Model::decode_bytes(int64_t depth) const {
  int64_t bytes = size_.dense_bytes;
  for (const LayerConfig& layer : config_.layers) {  // all layers with experts have the same number of them
    if (layer.num_experts > 0) {
      bytes += size_.expert_bytes * layer.experts_per_token / layer.num_experts;
      break;
    }
  }
  for (const KvLayout::Place& place : kv_layout_.layers) {
    const KvLayout::Kind& kind = kv_layout_.kinds[place.kind];
    const int64_t seen = kind.window > 0 ? std::min(depth, kind.window) : depth;
    bytes += kind.layer_bytes() / kKvBlockTokens * seen;
  }
  if (!weights_.per_layer_table.empty()) bytes += weights_.per_layer_table.row_bytes();
  return bytes;
}

int64_t Model::adapter_scratch_bytes(int64_t max_rank) const {
  if (max_rank == 0) return 0;
  int64_t widest = config_.hidden_size;  // input of a matrix that an adapter may correct
  for (const LayerConfig& layer : config_.layers) {
    widest = std::max({widest, layer.num_heads * layer.head_dim, layer.intermediate_size});
  }
  const int64_t rows = ForwardPass::most_rows(config_);
  const int64_t floats = rows * ForwardPass::adapter_floats_per_row(config_, max_rank);
  // Rows with different adapters share no prepared input with the product of the weights.
  const int64_t prepared = backend_->prepared_bytes({adapter_format(), max_rank, widest}, rows);
  return floats * static_cast<int64_t>(sizeof(float)) + prepared;
}

void Model::close() {
  const std::lock_guard<ForkMutex> lock(mutex_);
  closed_ = true;
  weights_ = ModelWeights();
  storage_.clear();
  mapping_.reset();
  activations_ = AlignedBuffer();
}

}  // namespace gemlet
