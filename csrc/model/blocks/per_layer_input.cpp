// Per-layer inputs (Gemma 3n, Gemma 4 E2B and E4B): every layer has its own small embedding of each token, half from a
// table that stays on disk, half projected from the token's embedding.
#include <cmath>

#include "model/forward.h"

namespace gemlet {

void ForwardPass::make_per_layer_inputs() {
  const int64_t size = config_.per_layer_input_size;
  const int64_t layers = static_cast<int64_t>(config_.layers.size());
  const double hidden = static_cast<double>(config_.hidden_size);
  const Product projection = {x_, rows_, &weights_.per_layer_model_projection, per_layer_};
  backend_.matmul({&projection, 1});
  // The projection is scaled by d^-1/2 before its norm: the same as a norm with eps * d.
  backend_.rms_norm(per_layer_, weights_.per_layer_projection_norm, static_cast<float>(config_.rms_norm_eps * hidden),
                    rows_ * layers, size, per_layer_);
  backend_.add_table_rows(weights_.per_layer_table, ids_, static_cast<float>(std::sqrt(static_cast<double>(size))),
                          static_cast<float>(std::sqrt(0.5)), per_layer_);
  tap("per_layer_inputs", per_layer_, layers * size);
}

void ForwardPass::per_layer_input(size_t index, const float* x) {
  const LayerWeights& w = weights_.layers[index];
  const int64_t size = config_.per_layer_input_size;
  const int64_t stride = size * static_cast<int64_t>(config_.layers.size());
  const Product gate = {x, rows_, &w.per_layer_input_gate, per_layer_gate_};
  backend_.matmul({&gate, 1});
  backend_.gelu_mul(per_layer_gate_, size, per_layer_ + static_cast<int64_t>(index) * size, stride, rows_, size,
                    per_layer_gate_);
  const Product projection = {per_layer_gate_, rows_, &w.per_layer_projection, branch_};
  backend_.matmul({&projection, 1});
}

}  // namespace gemlet
