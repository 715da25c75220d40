// Embeddings of texts by a bidirectional model.
#pragma once

#include <atomic>
#include <span>
#include <vector>

#include "model/model.h"

namespace gemlet {

// out [texts, embedding_size]: of each text, whose token ids go through one forward pass with all others, as the
// model's last matrix leaves it. Throws kUnsupported for another kind of model, kInvalidRequest for a text without
// tokens or an adapter of another model, and what Model::forward throws. `cancel` (may be null) is looked at between
// layers and ends it with Error{kCancelled}.
void embed(Model& model, std::span<const std::vector<int32_t>> texts, const Adapter* adapter, float* out,
           const std::atomic<bool>* cancel = nullptr, const TapSink* taps = nullptr);

}  // namespace gemlet
