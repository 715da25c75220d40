#include "engine/embedding.h"

#include <algorithm>

#include "base/error.h"
#include "model/kv_table.h"

namespace gemlet {

void embed(Model& model, std::span<const std::vector<int32_t>> texts, const Adapter* adapter, float* out,
           const std::atomic<bool>* cancel, const TapSink* taps) {
  if (!model.config().bidirectional) fail(ErrorCode::kUnsupported, "the model continues texts and makes no embeddings");
  if (adapter) adapter->check_model(model);
  std::vector<KvTable> tables;
  tables.reserve(texts.size());
  Batch batch;
  batch.embeddings = out;
  batch.taps = taps;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty()) fail(ErrorCode::kInvalidRequest, "text ", i, " has no tokens; give at least one");
    batch.segments.push_back({&tables.emplace_back(model.kv()), {texts[i]}, LogitsWanted::kNone, adapter, cancel});
  }
  if (texts.empty()) return;
  const std::vector<bool> cancelled = model.forward(batch);
  if (std::find(cancelled.begin(), cancelled.end(), true) != cancelled.end()) fail(ErrorCode::kCancelled, "cancelled");
}

}  // namespace gemlet
