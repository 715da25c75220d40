// Gated MLP: down(gelu(gate(x)) * up(x)).
#include "model/forward.h"

namespace gemlet {

void ForwardPass::gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows,
                           int64_t dim, float* out) {
  if (config_.exact_gelu) {
    backend_.exact_gelu_mul(gate, gate_stride, up, up_stride, rows, dim, out);
  } else {
    backend_.gelu_mul(gate, gate_stride, up, up_stride, rows, dim, out);
  }
}

void ForwardPass::mlp(size_t index) {
  const LayerConfig& c = config_.layers[index];
  const LayerWeights& w = weights_.layers[index];
  const int64_t width = c.intermediate_size;
  float* const gate = take(Region::kGate, width);
  float* const up = take(Region::kUp, width);
  const Projection gate_up[] = {{normed_, &w.gate_proj, Target::kGateProj, gate},
                                {normed_, &w.up_proj, Target::kUpProj, up}};
  if (c.activation_sparsity && rows_ == 1 && runs_.empty()) {
    // Most of the gate is 0. In decode, it saves time to skip the weights of the lanes that it closes.
    project(index, gate_up[0]);
    backend_.gaussian_topk(static_cast<float>(*c.activation_sparsity), rows_, width, gate);
    backend_.matmul_where({normed_, rows_, &w.up_proj, up}, gate);
  } else {
    project(index, gate_up);
    if (c.activation_sparsity) {
      backend_.gaussian_topk(static_cast<float>(*c.activation_sparsity), rows_, width, gate);
    }
  }
  gelu_mul(gate, width, up, width, rows_, width, gate);
  project(index, {gate, &w.down_proj, Target::kDownProj, branch_});
}

}  // namespace gemlet
