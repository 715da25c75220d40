// Embeddings of texts by a bidirectional model.
#pragma once

#include <atomic>
#include <span>
#include <vector>

#include "model/adapter.h"
#include "model/model.h"

namespace gemlet {

// Computes out [texts, embedding_size]: the embedding of each text, which is not normalised. The token ids of all texts
// go through one forward pass. Throws kUnsupported for another kind of model, kInvalidRequest for a text without tokens
// or an adapter of another model, kCancelled once `cancel` is true, and the errors of Model::forward.
void embed(Model& model, std::span<const std::vector<int32_t>> texts, const Adapter* adapter, float* out,
           const std::atomic<bool>* cancel = nullptr, const TapSink* taps = nullptr);

}  // namespace gemlet
