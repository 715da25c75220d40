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

std::vector<bool> Model::forward(const Batch& batch) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  const auto check_open = [&] {
    if (closed_) fail(ErrorCode::kClosed, "the model is closed; load it again");
  };
  check_open();
  if (mutex_.torn()) leave_torn_behind();
  check_files();
  batch.check(parts_.config);
  std::vector<KvGrowth> growths;
  growths.reserve(batch.segments.size());
  if (!batch.target) {
    for (const Segment& segment : batch.segments) growths.emplace_back(*segment.kv, segment.rows());
  }
  std::vector<bool> cancelled(batch.segments.size());
  const auto all_cancelled = [&] {
    check_open();
    for (size_t i = 0; i < cancelled.size(); ++i) {
      const std::atomic<bool>* const cancel = batch.segments[i].cancel;
      if (cancel && cancel->load(std::memory_order_relaxed)) cancelled[i] = true;
    }
    return std::find(cancelled.begin(), cancelled.end(), false) == cancelled.end();
  };

  parts_.backend->begin_pass(batch.rows());
  ForwardPass pass(parts_, batch, growths);
  pass.embed();
  for (size_t index = 0; index < parts_.config.layers.size(); ++index) {
    if (all_cancelled()) return cancelled;
    pass.layer(index);
  }
  if (all_cancelled()) return cancelled;
  parts_.config.bidirectional ? pass.embeddings() : pass.logits();
  check_files();
  for (size_t i = 0; i < growths.size(); ++i) {  // none of an assistant
    if (!cancelled[i]) growths[i].commit();
  }
  return cancelled;
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
    leave_behind(parts_.towers);
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
  parts_.towers = Tensors();
  storage_.clear();
  parts_.mapping.reset();
  parts_.scratch.release();
}

}  // namespace gemlet
