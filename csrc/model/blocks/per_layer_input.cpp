// Per-layer inputs (Gemma 3n, Gemma 4 E2B and E4B, EmbeddingGemma 2). Every layer has its own small embedding of each
// token: half of it comes from a table that stays on disk, half is projected from the token's embedding. EmbeddingGemma
// 2 has no table, and all of it is projected.
#include <cmath>

#include "model/forward.h"

namespace gemlet {

void ForwardPass::make_per_layer_inputs() {
  const int64_t size = config_.per_layer_input_size;
  const int64_t layers = static_cast<int64_t>(config_.layers.size());
  const double hidden = static_cast<double>(config_.hidden_size);
  float* const inputs = take_per_layer_inputs();
  project(0, {residual_, &weights_.per_layer_model_projection, Target::kPerLayerModelProjection, inputs});
  // The projection is scaled by d^-1/2 before its norm. A norm with eps * d gives the same.
  backend_.rms_norm(inputs, weights_.per_layer_projection_norm, static_cast<float>(config_.rms_norm_eps * hidden),
                    rows_ * layers, size, inputs);
  if (!weights_.per_layer_table.empty()) {
    backend_.add_table_rows(weights_.per_layer_table, ids_, static_cast<float>(std::sqrt(static_cast<double>(size))),
                            static_cast<float>(std::sqrt(0.5)), inputs);
  }
  tap("per_layer_inputs", inputs, layers * size);
}

float* ForwardPass::take_per_layer_inputs() {
  return take(Region::kPerLayerInputs, config_.per_layer_input_size * static_cast<int64_t>(config_.layers.size()));
}

void ForwardPass::per_layer_input(size_t index, const float* x) {
  const LayerWeights& w = weights_.layers[index];
  const int64_t size = config_.per_layer_input_size;
  const int64_t stride = size * static_cast<int64_t>(config_.layers.size());
  float* const gate = take(Region::kPerLayerGate, size);
  project(index, {x, &w.per_layer_input_gate, Target::kPerLayerInputGate, gate});
  const float* const inputs = take_per_layer_inputs() + static_cast<int64_t>(index) * size;
  backend_.gelu_mul(gate, size, inputs, stride, rows_, size, gate);
  project(index, {gate, &w.per_layer_projection, Target::kPerLayerProjection, branch_});
}

}  // namespace gemlet
