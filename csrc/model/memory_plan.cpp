#include "model/memory_plan.h"

#include <algorithm>
#include <set>
#include <vector>

#include "model/batch.h"
#include "model/scratch.h"

namespace gemlet {
namespace {

constexpr auto kFloatBytes = static_cast<int64_t>(sizeof(float));

// The matrices of each call of Backend::matmul. All matrices of a call have the same input.
std::vector<std::vector<const Matrix*>> calls_of(const ModelWeights& weights) {
  std::vector<std::vector<const Matrix*>> calls = {{&weights.per_layer_model_projection}};
  for (const Matrix& matrix : weights.altup_projections) calls.push_back({&matrix});
  for (const Matrix& matrix : weights.altup_unembed_projections) calls.push_back({&matrix});
  for (const Matrix& matrix : weights.dense) calls.push_back({&matrix});
  for (const Matrix* matrix : {&weights.pre_projection, &weights.post_projection, &weights.centroids}) {
    calls.push_back({matrix});
  }
  for (const LayerWeights& layer : weights.layers) {
    calls.push_back({&layer.q_proj, &layer.k_proj, &layer.v_proj});
    calls.push_back({&layer.o_proj});
    calls.push_back({&layer.gate_proj, &layer.up_proj});
    calls.push_back({&layer.down_proj});
    calls.push_back({&layer.per_layer_input_gate});
    calls.push_back({&layer.per_layer_projection});
    calls.push_back({&layer.altup.laurel_left});
    calls.push_back({&layer.altup.laurel_right});
  }
  return calls;
}

// Bytes of the inputs of the largest call, in the forms that its products need.
int64_t prepared_bytes(const ModelConfig& config, const ModelWeights& weights, const Backend& backend) {
  const int64_t rows = config.most_rows();
  int64_t most = 0;
  for (const std::vector<const Matrix*>& call : calls_of(weights)) {
    std::set<Format> formats;
    int64_t bytes = 0;
    for (const Matrix* matrix : call) {
      // Matrices whose inputs are rounded may each have their own scale.
      if (matrix->rows > 0 && (matrix->rounding.input > 0 || formats.insert(matrix->format).second)) {
        bytes += backend.prepared_bytes(*matrix, rows);
      }
    }
    most = std::max(most, bytes);
  }
  // One call multiplies all experts, each with a share of the rows.
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& c = config.layers[i];
    if (c.num_experts == 0) continue;
    const int64_t share = (rows * c.experts_per_token + c.num_experts - 1) / c.num_experts;
    for (const std::vector<Matrix>* experts : {&weights.layers[i].experts.gate_up, &weights.layers[i].experts.down}) {
      int64_t bytes = 0;
      for (const Matrix& matrix : *experts) bytes += backend.prepared_bytes(matrix, share);
      most = std::max(most, bytes);
    }
  }
  return most;
}

// Bytes that a thread needs to expand panels, for the matrix that needs the most.
int64_t expansion_bytes(const ModelWeights& weights, const Backend& backend) {
  int64_t most = 0;
  const auto look = [&](const Matrix& matrix) {
    if (matrix.rows > 0) most = std::max(most, backend.expansion_bytes(matrix));
  };
  look(weights.lm_head.rows > 0 ? weights.lm_head : weights.embed_tokens);
  for (const std::vector<const Matrix*>& call : calls_of(weights)) {
    for (const Matrix* matrix : call) look(*matrix);
  }
  for (const LayerWeights& layer : weights.layers) {
    for (const Matrix& matrix : layer.experts.gate_up) look(matrix);
    for (const Matrix& matrix : layer.experts.down) look(matrix);
  }
  return most;
}

}  // namespace

int64_t activation_bytes(const ModelConfig& config, const ModelWeights& weights, const Backend& backend, int threads) {
  int64_t attention = 0;
  for (const LayerConfig& c : config.layers) {
    const int64_t seen = c.sliding_window > 0 ? std::min(c.sliding_window, config.max_context) : config.max_context;
    attention = std::max(attention, backend.attention_bytes(c.num_heads, c.num_kv_heads, c.head_dim, seen));
  }
  return config.most_rows() * Scratch::floats_per_row(config, 0) * kFloatBytes +
         prepared_bytes(config, weights, backend) + attention + expansion_bytes(weights, backend) * threads +
         config.vocab_size * kFloatBytes;
}

int64_t adapter_activation_bytes(const ModelConfig& config, Format adapter_format, const Backend& backend,
                                 int64_t max_rank) {
  if (max_rank == 0) return 0;
  int64_t widest = config.hidden_size;  // the widest input of a matrix that an adapter may correct
  int64_t routed = 1;                   // the number of experts that a row is sent to
  for (const LayerConfig& layer : config.layers) {
    widest = std::max({widest, layer.num_heads * layer.head_dim, layer.intermediate_size});
    if (layer.num_experts > 0) routed = std::max(routed, layer.experts_per_token);
  }
  const int64_t floats = Scratch::floats_per_row(config, max_rank) - Scratch::floats_per_row(config, 0);
  const int64_t rows = config.most_rows();
  // If rows have different adapters, the adapters cannot use the prepared input of the product with the weights.
  const int64_t prepared =
      std::max(backend.prepared_bytes({adapter_format, max_rank, widest}, rows),
               backend.prepared_bytes({adapter_format, max_rank, config.hidden_size}, rows * routed));
  return rows * floats * kFloatBytes + prepared;
}

}  // namespace gemlet
