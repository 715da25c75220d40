#include "model/config.h"

#include <cmath>
#include <string>

#include "base/error.h"
#include "formats/layout.h"

namespace gemlet {
namespace {

// Generous bounds (the largest Gemma has 5376 x 21504 and 262,208 tokens) that keep every product of sizes far below
// 2^63.
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxWidth = int64_t{1} << 18;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxDense = 16;
constexpr int64_t kMaxContextTokens = int64_t{1} << 24;

void check(const std::string& where, const char* key, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(ErrorCode::kConfig, where, key, " is ", value, ", expected ", low, " to ", high);
  }
}

void check_real(const std::string& where, const char* key, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    fail(ErrorCode::kConfig, where, key, " is ", value, ", expected ", low, " to ", high);
  }
}

}  // namespace

void ModelConfig::validate() const {
  check("", "vocab_size", vocab_size, 1, kMaxVocab);
  check("", "hidden_size", hidden_size, 1, kMaxWidth);
  check("", "max_context", max_context, 1, kMaxContextTokens);
  check("", "number of layers", static_cast<int64_t>(layers.size()), 1, kMaxLayers);
  check_real("", "rms_norm_eps", rms_norm_eps, 1e-12, 1.0);
  check_real("", "embedding_scale", embedding_scale, 1e-6, 1e6);
  check_real("", "final_softcap", final_softcap, 0, 1e6);
  check_real("", "norm_offset", norm_offset, -16, 16);
  check("", "per_layer_input_size", per_layer_input_size, 0, kMaxWidth);
  if (per_layer_input_size > 0) check("", "per_layer_vocab_size", per_layer_vocab_size, 1, kMaxVocab);
  check("", "altup_streams", altup_streams, 1, bidirectional ? 1 : 16);
  if (altup_streams > 1) {  // an AltUp layer has both
    check("", "laurel_rank", laurel_rank, 1, kMaxWidth);
    check("", "per_layer_input_size", per_layer_input_size, 1, kMaxWidth);
  }
  check("", "number of dense_sizes", static_cast<int64_t>(dense_sizes.size()), 0, bidirectional ? kMaxDense : 0);
  for (const int64_t size : dense_sizes) check("", "dense_sizes", size, 1, kMaxWidth);
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerConfig& layer = layers[i];
    const std::string where = "layer " + std::to_string(i) + ": ";
    check(where, "num_heads", layer.num_heads, 1, kMaxHeads);
    check(where, "num_kv_heads", layer.num_kv_heads, 1, layer.num_heads);
    check(where, "head_dim", layer.head_dim, 2, kMaxHeadDim);
    check(where, "intermediate_size", layer.intermediate_size, 1, kMaxWidth * 4);
    check(where, "sliding_window", layer.sliding_window, 0, kMaxContextTokens);
    check_real(where, "query_scale", layer.query_scale, 1e-6, 1e6);
    check_real(where, "rope_theta", layer.rope_theta, 1.0, 1e12);
    check_real(where, "rope_scaling_factor", layer.rope_scaling_factor, 1e-3, 1e6);
    check_real(where, "attention_softcap", layer.attention_softcap, 0, 1e6);
    if (layer.head_dim % 2 != 0)
      fail(ErrorCode::kConfig, where, "head_dim is ", layer.head_dim, ", expected an even number");
    check_real(where, "rope_partial_factor", layer.rope_partial_factor, 0, 1);
    check_real(where, "activation_sparsity", layer.activation_sparsity.value_or(0), -10, 10);
    check(where, "num_experts", layer.num_experts, 0, 4096);
    if (layer.num_experts > 0) {
      check(where, "experts_per_token", layer.experts_per_token, 1, layer.num_experts);
      check(where, "expert_intermediate_size", layer.expert_intermediate_size, 1, kMaxWidth);
    }
    check(where, "kv_source", layer.kv_source, -1, bidirectional ? -1 : static_cast<int64_t>(i) - 1);
    if (layer.kv_source >= 0) {
      const LayerConfig& source = layers[static_cast<size_t>(layer.kv_source)];
      if (source.kv_source >= 0 || !source.same_cache(layer)) {
        fail(ErrorCode::kConfig, where, "kv_source is ", layer.kv_source,
             ", expected a layer with its own cache and the same window, kv heads and head_dim");
      }
    }
    if (layer.num_heads % layer.num_kv_heads != 0) {
      fail(ErrorCode::kConfig, where, "num_heads (", layer.num_heads, ") is not a multiple of num_kv_heads (",
           layer.num_kv_heads, ")");
    }
  }
}

size_t ModelConfig::last_cache_layer() const {
  size_t last = layers.size() - 1;
  while (layers[last].kv_source >= 0) --last;  // the first layer always owns one
  return last;
}

}  // namespace gemlet
