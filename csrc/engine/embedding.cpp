#include "engine/embedding.h"

#include "base/error.h"

namespace gemlet {

void embed(Model& model, std::span<const std::vector<int32_t>> texts, const Adapter* adapter, float* out,
           const std::atomic<bool>* cancel, const TapSink* taps) {
  if (!model.config().bidirectional) fail(ErrorCode::kUnsupported, "the model continues texts and makes no embeddings");
  if (adapter && &adapter->model() != &model) {
    fail(ErrorCode::kInvalidRequest, "the adapter belongs to another model; load it with this one");
  }
  std::vector<KvCache> caches(texts.size(), KvCache(model.kv_layout(), model.backend()));
  std::vector<Segment> batch;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty()) fail(ErrorCode::kInvalidRequest, "text ", i, " has no tokens; give at least one");
    batch.push_back({&caches[i], texts[i], LogitsWanted::kNone, nullptr, adapter,
                     out + static_cast<int64_t>(i) * model.config().embedding_size()});
  }
  if (!batch.empty()) model.forward(batch, cancel, taps);
}

}  // namespace gemlet
