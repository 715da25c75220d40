// A model as data: one LayerConfig for each layer drives the one forward pass. Python fills it from config.json or GGUF
// metadata.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace gemlet {

// The most rows of one pass over a sequence, unless a span is longer. Longer prompts are read in chunks of this size.
inline constexpr int64_t kChunkTokens = 512;

// Texts in one pass of a bidirectional model: at most this many, and together kChunkTokens, unless it is a single
// longer one.
inline constexpr int64_t kPassTexts = 32;

struct LayerConfig {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  double query_scale = 0;  // query_pre_attn_scalar^-1/2, which is not always head_dim^-1/2
  double rope_theta = 0;
  double rope_scaling_factor = 1;  // linear scaling: angles are divided by this
  int64_t sliding_window = 0;      // 0: full attention; the token itself counts
  double attention_softcap = 0;    // 0: none
  bool qk_norm = false;            // every query and key head has an RMS norm before the rotation
  bool post_norms = false;         // each branch has an RMS norm before it is added to the residual
  bool v_norm = false;             // every value head has an RMS norm without weight
  // There is no value projection. The values are the key projection before its norm and rotation.
  bool key_is_value = false;
  double rope_partial_factor = 1;  // the share of the pairs that rotate; the others stay as they are
  int64_t kv_source = -1;          // the earlier layer whose keys and values this one reads; -1: its own
  // The gate keeps what exceeds its mean by this many standard deviations; if none, it keeps everything.
  std::optional<double> activation_sparsity;
  int64_t num_experts = 0;  // routed experts beside the MLP; 0: none
  int64_t experts_per_token = 0;
  int64_t expert_intermediate_size = 0;
  bool layer_scalar = false;         // the layer multiplies the residual by a stored number at its end
  bool bidirectional_spans = false;  // tokens of a span (model/batch.h) also see the later ones of the same span
  // [head_dim / 2]: the angle per position of each pair. If empty, the three numbers of RoPE above give it.
  std::vector<float> rope_frequencies;

  // Layers of one kind share their cache blocks.
  bool same_cache(const LayerConfig& other) const {
    return sliding_window == other.sliding_window && num_kv_heads == other.num_kv_heads && head_dim == other.head_dim;
  }
  bool same_rope(const LayerConfig& other) const {
    return rope_theta == other.rope_theta && rope_scaling_factor == other.rope_scaling_factor &&
           rope_partial_factor == other.rope_partial_factor && rope_frequencies == other.rope_frequencies &&
           head_dim == other.head_dim;
  }
};

// The range of a field of LayerConfig or ModelConfig. The other fields may narrow it.
template <typename Value>
struct Limits {
  std::string_view field;
  Value low, high;
};
std::span<const Limits<int64_t>> size_limits();  // "layers" is their number, "dense_sizes" each of them
std::span<const Limits<double>> number_limits();

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t max_context = 0;
  double rms_norm_eps = 0;
  double embedding_scale = 0;
  bool exact_gelu = false;           // gelu by erf instead of its approximation by tanh, in the text model
  double final_softcap = 0;          // 0: none
  double norm_offset = 0;            // added to every norm weight while loading; 1 where checkpoints store w of (1 + w)
  bool tied_embeddings = true;       // the output head is the embedding table
  int64_t per_layer_input_size = 0;  // width of the token embedding that each layer has for itself; 0: none
  int64_t per_layer_vocab_size = 0;  // rows of its table; ids beyond them take row 0. 0: there is no table
  int64_t altup_streams = 1;         // residual streams; with more than 1 all layers are AltUp layers (Gemma 3n)
  int64_t laurel_rank = 0;           // rank of the low-rank branch of AltUp layers
  bool bidirectional = false;        // an embedding model: tokens also see later ones, and a text has one output
  std::vector<int64_t> dense_sizes;  // outputs of each matrix that follows the mean over the text's tokens
  // Only for an assistant, which drafts for a target model: the hidden size of the target. 0: this model is not an
  // assistant. The layers of an assistant have `kv_source` in the target; their windows end before the token.
  int64_t target_size = 0;
  int64_t centroids = 0;            // groups of the rows of its output head; 0: it is multiplied as a whole
  int64_t centroids_per_token = 0;  // groups that are multiplied
  // Ids of images, videos and sounds. In a text, they have the rows of the token `placeholders_read_as`.
  std::vector<int32_t> placeholder_ids;
  int32_t placeholders_read_as = 0;
  int64_t longest_span = 0;  // the most tokens of a span; a span of up to kChunkTokens is always possible
  std::vector<LayerConfig> layers;

  // Throws kConfig, with the name of the field, if a value is out of range.
  void validate() const;

  // The number of values in the embedding of a text.
  int64_t embedding_size() const { return dense_sizes.empty() ? hidden_size : dense_sizes.back(); }

  // The token whose rows of the embedding tables are those of `id`.
  int32_t embedded_as(int32_t id) const;

  bool has_spans() const;  // whether the tokens of a span see each other in any layer

  // Rows of the largest pass over one sequence.
  int64_t most_rows() const;

  // The last layer that has its own cache. Once its keys and values are there, only rows that want logits are needed.
  size_t last_cache_layer() const;
};

}  // namespace gemlet
