#include "model/config.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "base/error.h"
#include "formats/layout.h"

namespace gemlet {
namespace {

// Generous bounds: the largest Gemma has 5376 x 21504 weights in a matrix and 262,208 tokens. They keep every product
// of sizes far below 2^63.
constexpr int64_t kMaxVocab = int64_t{1} << 22;
constexpr int64_t kMaxWidth = int64_t{1} << 16;
constexpr int64_t kMaxContextTokens = int64_t{1} << 24;
constexpr int64_t kMaxDense = 16;
constexpr int64_t kMaxLayers = 1024;

constexpr Limits<int64_t> kSizeLimits[] = {
    {"vocab_size", 1, kMaxVocab},
    {"hidden_size", 1, kMaxWidth},
    {"max_context", 1, kMaxContextTokens},
    {"layers", 1, kMaxLayers},
    {"per_layer_input_size", 0, kMaxWidth},
    {"per_layer_vocab_size", 0, kMaxVocab},
    {"altup_streams", 1, kMaxStreams},
    {"laurel_rank", 0, kMaxWidth},
    {"dense_sizes", 1, kMaxWidth},
    {"longest_span", 0, kMaxContextTokens},
    {"num_heads", 1, 1024},
    {"num_kv_heads", 1, 1024},
    {"head_dim", 2, kMaxHeadDim},
    {"intermediate_size", 1, kMaxWidth * 16},
    {"sliding_window", 0, kMaxContextTokens},
    {"num_experts", 0, 4096},
    {"experts_per_token", 0, 4096},
    {"expert_intermediate_size", 0, kMaxWidth},
};

constexpr Limits<double> kNumberLimits[] = {
    {"rms_norm_eps", 1e-12, 1},         {"embedding_scale", 1e-6, 1e6}, {"final_softcap", 0, 1e6},
    {"norm_offset", -16, 16},           {"query_scale", 1e-6, 1e6},     {"rope_theta", 1, 1e12},
    {"rope_scaling_factor", 1e-3, 1e6}, {"attention_softcap", 0, 1e6},  {"rope_partial_factor", 0, 1},
    {"activation_sparsity", -10, 10},
};

void check_size(const std::string& where, std::string_view field, int64_t value) {
  const auto* limits = std::find_if(std::begin(kSizeLimits), std::end(kSizeLimits),
                                    [&](const Limits<int64_t>& known) { return known.field == field; });
  check_range(where, field, value, limits->low, limits->high);
}

void check_number(const std::string& where, std::string_view field, double value) {
  const auto* limits = std::find_if(std::begin(kNumberLimits), std::end(kNumberLimits),
                                    [&](const Limits<double>& known) { return known.field == field; });
  check_range(where, field, value, limits->low, limits->high);
}

void check_layer(const ModelConfig& config, size_t index) {
  const LayerConfig& layer = config.layers[index];
  const std::string where = "layer " + std::to_string(index) + ": ";
  check_size(where, "num_heads", layer.num_heads);
  check_range<int64_t>(where, "num_kv_heads", layer.num_kv_heads, 1, layer.num_heads);
  check_size(where, "head_dim", layer.head_dim);
  check_size(where, "intermediate_size", layer.intermediate_size);
  check_size(where, "sliding_window", layer.sliding_window);
  check_size(where, "num_experts", layer.num_experts);
  check_size(where, "experts_per_token", layer.experts_per_token);
  check_size(where, "expert_intermediate_size", layer.expert_intermediate_size);
  check_number(where, "query_scale", layer.query_scale);
  check_number(where, "rope_theta", layer.rope_theta);
  check_number(where, "rope_scaling_factor", layer.rope_scaling_factor);
  check_number(where, "attention_softcap", layer.attention_softcap);
  check_number(where, "rope_partial_factor", layer.rope_partial_factor);
  check_number(where, "activation_sparsity", layer.activation_sparsity.value_or(0));
  if (layer.num_heads % layer.num_kv_heads != 0) {
    fail(ErrorCode::kConfig, where, "num_heads (", layer.num_heads, ") is not a multiple of num_kv_heads (",
         layer.num_kv_heads, ")");
  }
  if (layer.bidirectional_spans && config.bidirectional) {
    fail(ErrorCode::kConfig, where, "bidirectional_spans is true, but all tokens of the model see later ones");
  }
  if (layer.head_dim % 2 != 0) {
    fail(ErrorCode::kConfig, where, "head_dim is ", layer.head_dim, ", expected an even number");
  }
  if (!layer.rope_frequencies.empty()) {
    check_range<int64_t>(where, "the number of rope_frequencies", std::ssize(layer.rope_frequencies),
                         layer.head_dim / 2, layer.head_dim / 2);
    for (const float frequency : layer.rope_frequencies) {
      check_range<double>(where, "a frequency of rope_frequencies", frequency, 0, 1e3);
    }
  }
  if (layer.num_experts > 0) {
    check_range<int64_t>(where, "experts_per_token", layer.experts_per_token, 1, layer.num_experts);
    check_range<int64_t>(where, "expert_intermediate_size", layer.expert_intermediate_size, 1, kMaxWidth);
  }
  if (config.target_size > 0) return check_range<int64_t>(where, "kv_source", layer.kv_source, 0, kMaxLayers - 1);
  check_range<int64_t>(where, "kv_source", layer.kv_source, -1,
                       config.bidirectional ? -1 : static_cast<int64_t>(index) - 1);
  if (layer.kv_source >= 0) {
    const LayerConfig& source = config.layers[static_cast<size_t>(layer.kv_source)];
    if (source.kv_source >= 0 || !source.same_cache(layer)) {
      fail(ErrorCode::kConfig, where, "kv_source is ", layer.kv_source,
           ", expected a layer with its own cache and the same window, kv heads and head_dim");
    }
  }
}

}  // namespace

std::span<const Limits<int64_t>> size_limits() { return kSizeLimits; }
std::span<const Limits<double>> number_limits() { return kNumberLimits; }

void ModelConfig::validate() const {
  check_size("", "vocab_size", vocab_size);
  check_size("", "hidden_size", hidden_size);
  check_size("", "max_context", max_context);
  check_size("number of ", "layers", static_cast<int64_t>(layers.size()));
  check_size("", "per_layer_input_size", per_layer_input_size);
  check_size("", "per_layer_vocab_size", per_layer_vocab_size);
  check_size("", "altup_streams", altup_streams);
  check_size("", "laurel_rank", laurel_rank);
  check_size("", "longest_span", longest_span);
  check_range<int64_t>("", "placeholders_read_as", placeholders_read_as, 0, vocab_size - 1);
  for (const int32_t id : placeholder_ids) check_range<int64_t>("", "placeholder_ids", id, 0, vocab_size - 1);
  check_range<int64_t>("", "target_size", target_size, 0, kMaxWidth);
  if (target_size > 0) {  // no assistant has these
    check_range<int64_t>("", "per_layer_input_size", per_layer_input_size, 0, 0);
    check_range<int64_t>("", "altup_streams", altup_streams, 1, 1);
    check_range<int64_t>("", "bidirectional", bidirectional ? 1 : 0, 0, 0);
    check_range<int64_t>("", "tied_embeddings", tied_embeddings ? 1 : 0, 1, 1);
  }
  check_range<int64_t>("", "centroids", centroids, 0, target_size > 0 ? vocab_size : 0);
  if (centroids > 0) {
    check_range<int64_t>("", "centroids_per_token", centroids_per_token, 1, centroids);
    check_range<int64_t>("", "vocab_size modulo centroids", vocab_size % centroids, 0, 0);
  }
  check_number("", "rms_norm_eps", rms_norm_eps);
  check_number("", "embedding_scale", embedding_scale);
  check_number("", "final_softcap", final_softcap);
  check_number("", "norm_offset", norm_offset);
  if (bidirectional) check_range<int64_t>("", "altup_streams", altup_streams, 1, 1);
  if (altup_streams > 1) {  // an AltUp layer has both
    check_range<int64_t>("", "laurel_rank", laurel_rank, 1, kMaxWidth);
    check_range<int64_t>("", "per_layer_input_size", per_layer_input_size, 1, kMaxWidth);
  }
  check_range<int64_t>("", "number of dense_sizes", static_cast<int64_t>(dense_sizes.size()), 0,
                       bidirectional ? kMaxDense : 0);
  for (const int64_t size : dense_sizes) check_size("", "dense_sizes", size);
  for (size_t index = 0; index < layers.size(); ++index) check_layer(*this, index);
}

int32_t ModelConfig::embedded_as(int32_t id) const {
  const bool is_placeholder = std::find(placeholder_ids.begin(), placeholder_ids.end(), id) != placeholder_ids.end();
  return is_placeholder ? placeholders_read_as : id;
}

bool ModelConfig::has_spans() const {
  return std::any_of(layers.begin(), layers.end(), [](const LayerConfig& layer) { return layer.bidirectional_spans; });
}

size_t ModelConfig::last_cache_layer() const {
  size_t last = layers.size() - 1;
  while (layers[last].kv_source >= 0) --last;  // the first layer always has one
  return last;
}

int64_t ModelConfig::most_rows() const {
  if (target_size > 0) return kPassTexts;  // a row for each text
  return bidirectional ? max_context : std::min(max_context, std::max(kChunkTokens, longest_span));
}

}  // namespace gemlet
