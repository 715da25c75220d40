// Per-layer inputs (Gemma 3n, Gemma 4 E2B and E4B, EmbeddingGemma 2). Every layer has its own small embedding of each
// token: half of it comes from a table that stays on disk, half is projected from the token's embedding. EmbeddingGemma
// 2 has no table, and all of it is projected.
#include <cmath>
#include <vector>

#include "model/forward.h"

namespace gemlet {

void ForwardPass::make_per_layer_inputs() {
  const int64_t size = config_.per_layer_input_size;
  const int64_t layers = static_cast<int64_t>(config_.layers.size());
  const double hidden = static_cast<double>(config_.hidden_size);
  float* const inputs = take_per_layer_inputs();
  project(0, {residual_, &weights_.per_layer_model_projection, Target::kPerLayerModelProjection, inputs});
  // The projection is scaled by d^-1/2 before its norm. A norm with eps * d gives the same.
  const auto eps = static_cast<float>(config_.rms_norm_eps * hidden);
  const int64_t width = layers * size;
  by_norm(weights_.per_layer_projection_norm, rows_, runs_, [&](const float* own, int64_t row, int64_t rows) {
    backend_.rms_norm(inputs + row * width, own, eps, rows * layers, size, inputs + row * width);
  });
  if (!weights_.per_layer_table.empty()) {
    const auto scale = static_cast<float>(std::sqrt(static_cast<double>(size)));
    const auto mean = static_cast<float>(std::sqrt(0.5));  // the factor on the sum of the two halves
    int64_t next = 0;                                      // the first row whose row of a table is not added yet
    const auto add_model_rows = [&](int64_t end) {
      const std::span<const int32_t> ids(ids_.data() + next, static_cast<size_t>(end - next));
      if (!ids.empty()) backend_.add_table_rows(weights_.per_layer_table, ids, scale, mean, inputs + next * width);
    };
    for (const AdapterRun& run : runs_) {
      const OwnTable& own = run.adapter->per_layer_table();
      if (own.rows.empty()) continue;
      own.rows.check();
      if (own.places.empty()) {
        add_model_rows(run.row);
        next = run.row + run.rows;
        const std::span<const int32_t> ids(ids_.data() + run.row, static_cast<size_t>(run.rows));
        backend_.add_table_rows(own.rows, ids, scale, mean, inputs + run.row * width);
      }
      for (int64_t row = run.row; row < run.row + run.rows && !own.places.empty(); ++row) {
        const int32_t id = ids_[static_cast<size_t>(row)];
        const auto found = own.places.find(id < weights_.per_layer_table.rows() ? id : 0);  // as of the model's table
        if (found == own.places.end()) continue;
        add_model_rows(row);
        next = row + 1;
        backend_.add_table_rows(own.rows, {&found->second, 1}, scale, mean, inputs + row * width);
      }
      own.rows.check();
    }
    add_model_rows(rows_);
    for (const AdapterRun& run : runs_) {
      const LowRank* const term = run.adapter->term(Target::kPerLayerTable, 0);
      if (!term) continue;
      std::vector<int32_t> ids(ids_.begin() + run.row, ids_.begin() + run.row + run.rows);
      for (int32_t& id : ids) id = id < term->a.rows ? id : 0;  // the table does the same
      add_looked_up(*term, ids, scale * mean, inputs + run.row * width);
    }
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
  gelu_mul(gate, size, inputs, stride, rows_, size, gate);
  project(index, {gate, &w.per_layer_projection, Target::kPerLayerProjection, branch_});
}

}  // namespace gemlet
