// One forward pass over a batch: the state that the blocks (blocks/*.cpp) share. Activations are float32 [rows, dim],
// where the rows are the tokens of all segments one after the other. The residual stays in float32 throughout.
#pragma once

#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/batch.h"
#include "model/kv_table.h"
#include "model/parts.h"

namespace gemlet {

class ForwardPass {
 public:
  // growths[i]: room for the tokens of batch.segments[i].
  ForwardPass(ModelParts& model, const Batch& batch, std::span<const KvGrowth> growths);

  void embed();
  void layer(size_t index);
  void logits();
  void embeddings();  // computes the output of a bidirectional model, which has no logits

 private:
  // The rows of one segment that are still in the pass.
  struct Part {
    const Segment* segment;
    const KvGrowth* kv;  // null for an assistant
    int64_t row, rows;
    int64_t position;  // absolute position of the first row
    int64_t
        wanted;  // the number of rows at the end that are kept: those that want logits, or all in a bidirectional model
    int64_t output;                // index of its first row in the batch's logits, or of its text in the embeddings
    std::vector<TokenSpan> spans;  // spans that contain one of the rows, as absolute positions
  };
  // One matrix, applied to x [rows, cols], with the terms of the rows' adapters.
  struct Projection {
    const float* x;
    const Matrix* weight;
    Target target;
    float* y;
  };
  // Consecutive rows with the same adapter.
  struct AdapterRun {
    const Adapter* adapter;
    int64_t row, rows;
  };
  // The term that an adapter adds to a product of some rows.
  struct Correction {
    const LowRank* term;
    const float* x;  // [rows, cols]
    float* y;        // [rows, dim]
    int64_t rows;
    float* low = nullptr;    // [rows, columns of B] A x
    float* delta = nullptr;  // [rows, dim] B (A x)
  };
  // The (row, choice) pairs of a layer in the order of their experts.
  struct ExpertRows {
    size_t layer;
    std::span<const int64_t> first;    // where each expert's rows begin, and the end
    std::span<const int32_t> sources;  // the row of each pair
  };
  struct Rope {
    const LayerConfig* kind;
    float* cosines;  // [rows, head_dim / 2]
    float* sines;
  };

  // Calls apply(weight of the norm, first row, rows) for each run of rows with the same weight. This is the model's
  // `weight`, or the weight of the rows' adapter.
  template <typename Apply>
  void by_norm(const float* weight, int64_t rows, const std::vector<AdapterRun>& runs, const Apply& apply) const {
    int64_t next = 0;
    for (const AdapterRun& run : runs) {
      const float* const own = run.adapter->norm(weight);
      if (own == weight) continue;
      if (next < run.row) apply(weight, next, run.row - next);
      apply(own, run.row, run.rows);
      next = run.row + run.rows;
    }
    if (next < rows) apply(weight, next, rows - next);
  }
  // out [rows, hidden] = rms_norm(x) * weight
  void norm(const float* x, const float* weight, float* out);
  // residual [rows, hidden] += rms_norm(x) * weight; weight null: += x
  void add_normed(const float* x, const float* weight, float* residual);

  void add_parts(std::span<const KvGrowth> growths);
  void find_adapter_runs();
  // The rows from `first` on, of the `rows` rows that want logits, that have an adapter; counted from `first`.
  std::vector<AdapterRun> output_runs(int64_t first, int64_t rows) const;
  void make_rope_tables();
  const Rope& rope_of(const LayerConfig& layer) const;
  void complete_keys(size_t index);
  void keep_wanted_rows();

  void read_target();  // This function and the next three are for assistants.
  void attend_to_target(const LayerConfig& layer, AttentionShape shape, const float* q, float* mixed);
  void guess(const float* x);
  void guess_by_centroids(const float* x);

  void embed_from_disk();
  void put_soft_rows();
  void adapt_embeddings();
  // Adds an adapter's term of a table: x [ids, b.rows] += scale * B A[:, id].
  void add_looked_up(const LowRank& term, std::span<const int32_t> ids, float scale, float* x);
  // logits = lm_head(x), for the `rows` rows from `first` on among those that want logits.
  void multiply_head(const float* x, int64_t first, int64_t rows, float* logits);
  void adapt_head(const AdapterRun& run, const float* x, float* logits);

  // Multiplies all products in one call, like Backend::matmul. `index` is the layer or the stream (see Target).
  void project(size_t index, std::span<const Projection> projections);
  void project(size_t index, const Projection& projection) { project(index, {&projection, 1}); }
  // Computes products_ and adds the terms of adapters, in groups that fit the buffers.
  void multiply(std::span<Correction> corrections);
  void correct(std::span<Correction> corrections, int64_t low_floats, int64_t delta_floats);
  void push_low(const LowRank& term, const float* x, int64_t rows, float* low);
  // branch_ = o_proj(attention(normed_)). With `keys_alone`, only the keys and values of normed_ are computed and
  // stored.
  void attention(size_t index, bool keys_alone = false);
  // Calls gelu_mul of the backend, with this model's kind of gelu.
  void gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows, int64_t dim,
                float* out);
  void mlp(size_t index);          // branch_ = down(gelu(gate(normed_)) * up(normed_))
  void add_experts(size_t index);  // branch_ = norm(branch_) + norm(experts(residual_))
  void multiply_experts(const ExpertRows& routed, Target target, std::span<const Matrix> weights, const float* x,
                        float* y);

  void make_per_layer_inputs();
  void per_layer_input(size_t index, const float* x);  // branch_ = projection(gelu(gate(x)) * this layer's input)

  void open_streams();                               // residual_ [rows, hidden] -> [streams, rows, hidden]
  void altup_layer(size_t index);                    // layer() over streams
  float* altup_predict(size_t index);                // the streams after the layer, as AltUp predicts them
  float* altup_route(size_t index, const float* x);  // modalities = router(rms_norm(x))
  std::vector<const float*> altup_coefs(size_t index, Target target, const float* coefs) const;
  void close_streams();  // [streams, rows, hidden] -> residual_ [rows, hidden]

  // A region of the scratch memory with `dim` floats for each row that is still in the pass.
  float* take(Region region, int64_t dim) { return model_.scratch.take(region, rows_ * dim); }
  float* take_per_layer_inputs();  // [rows, layers, per_layer_input]
  void tap(const std::string& name, const float* data, int64_t dim) const;
  void tap_layer(size_t index, const std::string& name, const float* data, int64_t dim) const;

  ModelParts& model_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  Backend& backend_;
  const Batch& batch_;
  const float eps_;
  std::vector<Part> parts_;
  std::vector<AdapterRun> runs_;  // empty if no row has an adapter
  std::vector<Rope> ropes_;
  std::vector<Product> products_;  // products of the current call of project()
  std::vector<int32_t> ids_;
  int64_t rows_ = 0;
  int64_t wanted_ = 0;              // the number of rows that want logits, over all parts_
  bool keys_are_complete_ = false;  // whether complete_keys() has computed the keys of the next layer

  float* residual_;  // [streams, rows, hidden]
  float* normed_;    // [rows, hidden] input of a block
  float* branch_;    // [rows, hidden] output of a block
};

}  // namespace gemlet
