// One forward pass over a ragged batch: the state that the blocks (blocks/*.cpp) share. Activations are [rows, dim]
// float32, rows = all segments' tokens one after the other; the residual stream `x` stays float32 throughout.
#pragma once

#include <string>
#include <vector>

#include "model/model.h"

namespace gemlet {

class ForwardPass {
 public:
  ForwardPass(Model& model, std::span<const Segment> batch, const TapSink* taps);

  void embed();
  void layer(size_t index);
  void logits();
  void embeddings();  // instead, of a bidirectional model

  // Scratch for one row, without what the backend itself keeps; what adapters of at most this rank add to it; and the
  // rows of a pass over one sequence.
  static int64_t floats_per_row(const ModelConfig& config);
  static int64_t adapter_floats_per_row(const ModelConfig& config, int64_t max_rank);
  static int64_t most_rows(const ModelConfig& config);

 private:
  // The rows of one segment that are still in the pass.
  struct Part {
    KvCache* kv;
    const Adapter* adapter;
    int64_t row, rows;
    int64_t position;  // absolute, of the first row
    int64_t wanted;    // last rows that matter to the end: those that want logits, all of a bidirectional model
    float* logits;
    float* embedding;
  };
  // One matrix of a layer applied to x [rows, cols], with what the rows' adapters add to it.
  struct Projection {
    const float* x;
    const Matrix* weight;
    LowRank LayerAdapter::* term;
    float* y;
  };
  // Consecutive rows with the same adapter.
  struct AdapterRun {
    const Adapter* adapter;
    int64_t row, rows;
  };
  struct Rope {
    const LayerConfig* example;
    float* cosines;  // [rows, head_dim / 2]
    float* sines;
  };

  void add_part(const Segment& segment);
  void allocate();
  void make_rope_tables();
  void embed_from_disk();
  void complete_keys(size_t index);
  void keep_wanted_rows();
  void head(const float* x, int64_t rows, float* logits);  // lm_head(x), before the softcap
  void find_adapter_runs();

  void project(size_t index, std::span<const Projection> projections);  // all of them in one go, like Backend::matmul
  // branch_ = o_proj(attention(normed_)), or of normed_ only the keys and values, into the cache
  void attention(size_t index, bool keys_alone = false);
  void mlp(size_t index);          // branch_ = down(gelu(gate(normed_)) * up(normed_))
  void add_experts(size_t index);  // branch_ = norm(branch_) + norm(experts(x_))

  void make_per_layer_inputs();
  void per_layer_input(size_t index, const float* x);  // branch_ = projection(gelu(gate(x)) * this layer's input)

  void open_streams();                                          // x_ [rows, hidden] -> [streams, rows, hidden]
  void altup_layer(size_t index);                               // layer() over streams
  void altup_predict(size_t index);                             // predicted_ = the streams behind the layer
  void altup_route(const AltupWeights& altup, const float* x);  // modalities_ = router(rms_norm(x))
  void close_streams();                                         // and back

  void tap(const std::string& name, const float* data, int64_t dim) const;
  void tap_layer(size_t index, const std::string& name, const float* data, int64_t dim) const;

  Model& model_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  Backend& backend_;
  const TapSink* taps_;
  std::vector<Part> parts_;
  std::vector<AdapterRun> runs_;   // none: no row has an adapter
  std::vector<Product> products_;  // of the call of project() at hand
  std::vector<int32_t> ids_;
  int64_t rows_ = 0;
  int64_t wanted_ = 0;              // of them: the sum over parts_
  bool keys_are_complete_ = false;  // ahead of their layer: by complete_keys()
  float eps_;

  // Scratch, all inside Model::activations_.
  float* x_;                        // [streams, rows, hidden] residual
  float* normed_;                   // [rows, hidden]
  float* branch_;                   // [rows, hidden]
  float* last_;                     // [rows, hidden] rows that want logits
  float* wide_;                     // [rows, the widest of q + output + k + v, gate + up, experts, dense] by turns
  float* per_layer_;                // [rows, layers, per_layer_input] every layer's own embedding
  float* per_layer_gate_;           // [rows, per_layer_input]
  float* predicted_ = nullptr;      // [streams, rows, hidden]
  float* laurel_ = nullptr;         // [rows, hidden]
  float* low_rank_ = nullptr;       // [rows, laurel_rank]
  float* modalities_ = nullptr;     // [rows, streams]
  float* adapter_low_ = nullptr;    // [rows, 3 * max_rank] A x of up to three matrices
  float* adapter_delta_ = nullptr;  // [rows, the widest of q + k + v, gate + up, hidden] B (A x) of them
  std::vector<Rope> ropes_;         // one per distinct (theta, scaling, share, head_dim)
};

}  // namespace gemlet
