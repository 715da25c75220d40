// Gated MLP: down(gelu_tanh(gate(x)) * up(x)).
#include "model/forward.h"

namespace gemlet {

void ForwardPass::mlp(size_t index) {
  const int64_t width = model_.config().layers[index].intermediate_size;
  const LayerWeights& w = model_.weights().layers[index];
  float* const gate = wide_;               // [rows, width]
  float* const up = gate + rows_ * width;  // [rows, width]
  const MatmulTarget gate_up[] = {{&w.gate_proj, gate}, {&w.up_proj, up}};
  backend_.matmul(normed_, rows_, gate_up);
  backend_.gelu_mul(gate, up, rows_, width);
  const MatmulTarget down = {&w.down_proj, branch_};
  backend_.matmul(gate, rows_, {&down, 1});
}

}  // namespace gemlet
