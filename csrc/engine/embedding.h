// Computes embeddings of texts with a bidirectional model.
#pragma once

#include <atomic>
#include <span>
#include <vector>

#include "model/adapter.h"
#include "model/model.h"

namespace gemlet {

// Writes the embedding of each text, which is not normalised, to out [texts, embedding_size]. One forward pass computes
// all texts. Throws kUnsupported if the model is not bidirectional, kInvalidRequest if a text has no tokens or the
// adapter belongs to another model, kCancelled once `cancel` is true, and the errors of Model::forward.
void embed(Model& model, std::span<const std::vector<int32_t>> texts, const Adapter* adapter, float* out,
           const std::atomic<bool>* cancel = nullptr, const TapSink* taps = nullptr);

}  // namespace gemlet
