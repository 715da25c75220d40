// One forward pass over a ragged batch: the state that the blocks (blocks/*.cpp) share. Activations are [rows, dim] float32,
// rows = all segments' tokens one after the other; the residual stream `x` stays float32 throughout.
#pragma once

#include <vector>

#include "model/model.h"

namespace gemlet {

class ForwardPass {
 public:
  ForwardPass(Model& model, std::span<const Segment> batch, const TapSink* taps);

  void embed();
  void layer(size_t index);
  void logits();

 private:
  void attention(size_t index);  // branch_ = o_proj(attention(normed_))
  void mlp(size_t index);        // branch_ = down(gelu(gate(normed_)) * up(normed_))
  void make_rope_tables();
  void tap(const char* name, const float* data, int64_t dim) const;
  void tap_layer(size_t index, const char* name, const float* data, int64_t dim) const;

  Model& model_;
  Backend& backend_;
  std::span<const Segment> batch_;
  const TapSink* taps_;
  int64_t rows_ = 0;
  float eps_;

  // Scratch, all inside Model::activations_.
  float* x_;         // [rows, hidden] residual stream
  float* normed_;    // [rows, hidden]
  float* branch_;    // [rows, hidden]
  float* wide_;      // [rows, max(q + k + v + attention out, gate + up)] by turns of attention and mlp
  float* last_;      // [segments or rows, hidden] rows that want logits
  struct Rope {
    const LayerConfig* example;
    float* cosines;  // [rows, head_dim / 2]
    float* sines;
  };
  std::vector<Rope> ropes_;  // one per distinct (theta, scaling, head_dim)
};

}  // namespace gemlet
