#include "model/model.h"

#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "formats/layout.h"
#include "model/forward.h"
#include "model/memory_plan.h"

namespace gemlet {

Model::Model(ModelParts parts, std::vector<DeviceMemory> storage, ModelSize size)
    : parts_(std::move(parts)), storage_(std::move(storage)), size_(size) {}

void Model::check(const Batch& batch) const {
  const ModelConfig& config = parts_.config;
  if (config.bidirectional != (batch.embeddings != nullptr)) {
    fail(ErrorCode::kInvalidRequest, "the model makes ", config.bidirectional ? "embeddings of whole texts" : "text",
         ", nothing else");
  }
  for (const Segment& segment : batch.segments) {
    for (const int32_t id : segment.ids) {
      if (id < 0 || id >= config.vocab_size) {
        fail(ErrorCode::kInvalidRequest, "token id ", id, " is out of range: the vocabulary has ids 0 to ",
             config.vocab_size - 1);
      }
    }
    if (!config.bidirectional && segment.logits_rows() > 0 && !batch.logits) {
      fail(ErrorCode::kInternal, "a segment wants logits, but the batch has no memory for them");
    }
    if (config.bidirectional && segment.kv->length() > 0) {
      fail(ErrorCode::kInvalidRequest, "a text to be embedded must come as a whole, in one segment");
    }
    const int64_t after = segment.kv->length() + segment.rows();
    if (after > config.max_context) {
      fail(ErrorCode::kContextLength, after, " tokens do not fit the context of ", config.max_context,
           "; shorten the prompt, or load with a larger max_context if the model allows it");
    }
  }
}

void Model::forward(const Batch& batch) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  const auto check_open = [&] {
    if (closed_) fail(ErrorCode::kClosed, "the model is closed; load it again");
  };
  check_open();
  if (mutex_.torn()) leave_torn_behind();
  check_files();
  check(batch);
  std::vector<KvGrowth> growths;
  growths.reserve(batch.segments.size());
  for (const Segment& segment : batch.segments) growths.emplace_back(*segment.kv, segment.rows());
  const auto check_cancelled = [&] {
    check_open();
    if (batch.cancel && batch.cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
  };

  parts_.backend->begin_pass(batch.rows());
  ForwardPass pass(parts_, batch, growths);
  pass.embed();
  for (size_t index = 0; index < parts_.config.layers.size(); ++index) {
    check_cancelled();
    pass.layer(index);
  }
  check_cancelled();
  parts_.config.bidirectional ? pass.embeddings() : pass.logits();
  check_files();
  for (KvGrowth& growth : growths) growth.commit();
}

int64_t Model::decode_bytes(int64_t depth) const {
  int64_t bytes = size_.dense_bytes;
  for (const LayerConfig& layer : parts_.config.layers) {  // all layers with experts have the same number of them
    if (layer.num_experts > 0) {
      bytes += size_.expert_bytes * layer.experts_per_token / layer.num_experts;
      break;
    }
  }
  const KvLayout& layout = parts_.kv->layout();
  for (const KvLayout::Place& place : layout.layers) {
    const KvLayout::Kind& kind = layout.kinds[place.kind];
    const int64_t seen = kind.window > 0 ? std::min(depth, kind.window) : depth;
    bytes += kind.layer_bytes() / kKvBlockTokens * seen;
  }
  if (!parts_.weights.per_layer_table.empty()) bytes += parts_.weights.per_layer_table.row_bytes();
  return bytes;
}

int64_t Model::adapter_scratch_bytes(int64_t max_rank) const {
  return adapter_activation_bytes(parts_.config, adapter_format(parts_.weight_format), *parts_.backend, max_rank);
}

Model::~Model() {
  if (mutex_.torn()) leave_torn_behind();
}

void Model::check_files() const {
  if (parts_.mapping) parts_.mapping->check();
  parts_.weights.per_layer_table.check();
}

void Model::leave_torn_behind() {
  leave_behind(parts_.scratch);
  parts_.backend->leave_scratch_behind();
  if (closed_) {  // perhaps close() was changing these
    leave_behind(parts_.weights);
    leave_behind(storage_);
    leave_behind(parts_.mapping);
  }
  mutex_.mend();
}

void Model::close() {
  closed_ = true;
  const std::lock_guard<ForkMutex> lock(mutex_);
  if (mutex_.torn()) leave_torn_behind();
  parts_.weights = ModelWeights();
  storage_.clear();
  parts_.mapping.reset();
  parts_.scratch.release();
}

}  // namespace gemlet
