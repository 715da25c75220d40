// A model as data: one LayerConfig per layer drives the one forward pass. Filled by Python from config.json or GGUF
// metadata.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace gemlet {

struct LayerConfig {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  double query_scale = 0;  // query_pre_attn_scalar^-1/2; not always head_dim^-1/2
  double rope_theta = 0;
  double rope_scaling_factor = 1;  // linear: angles divided by this
  int64_t sliding_window = 0;      // 0 = full attention; counts the token itself
  double attention_softcap = 0;    // 0 = none
  bool qk_norm = false;            // RMS norm of every query and key head before the rotation
  bool post_norms = false;         // RMS norm of each branch before it joins the residual
  bool v_norm = false;             // RMS norm without weight of every value head
  bool key_is_value = false;       // no value projection: values are the key projection before its norm and rotation
  double rope_partial_factor = 1;  // share of the pairs that rotate; the others pass through
  int64_t kv_source = -1;          // the earlier layer whose keys and values this one reads; -1 = its own
  std::optional<double>
      activation_sparsity;  // gate keeps what exceeds mean + this many standard deviations; none = all
  int64_t num_experts = 0;  // routed experts beside the MLP; 0 = none
  int64_t experts_per_token = 0;
  int64_t expert_intermediate_size = 0;
  bool layer_scalar = false;  // the residual is multiplied by a stored number at the layer's end

  // Layers of one kind share a table of cache blocks.
  bool same_cache(const LayerConfig& other) const {
    return sliding_window == other.sliding_window && num_kv_heads == other.num_kv_heads && head_dim == other.head_dim;
  }
  bool same_rope(const LayerConfig& other) const {
    return rope_theta == other.rope_theta && rope_scaling_factor == other.rope_scaling_factor &&
           rope_partial_factor == other.rope_partial_factor && head_dim == other.head_dim;
  }
};

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t max_context = 0;
  double rms_norm_eps = 0;
  double embedding_scale = 0;
  double final_softcap = 0;          // 0 = none
  double norm_offset = 0;            // added to every norm weight while loading: 1 where checkpoints store w of (1 + w)
  bool tied_embeddings = true;       // the output head is the embedding table
  int64_t per_layer_input_size = 0;  // width of each layer's own token embedding; 0 = none
  int64_t per_layer_vocab_size = 0;  // its rows; other ids take row 0
  int64_t altup_streams = 1;         // residual streams; more than 1 makes the layers AltUp layers (Gemma 3n)
  int64_t laurel_rank = 0;           // of the AltUp layers' low-rank branch
  bool bidirectional = false;        // an embedding model: tokens see later ones as well, and a text has one output
  std::vector<int64_t> dense_sizes;  // outputs of each matrix behind the mean over its tokens
  std::vector<LayerConfig> layers;

  // Throws Error{kConfig} naming the field if a value is out of range or sizes would overflow.
  void validate() const;

  // Numbers in the embedding of a text.
  int64_t embedding_size() const { return dense_sizes.empty() ? hidden_size : dense_sizes.back(); }

  // The last layer that owns a cache: after its keys and values, only the rows that want logits are needed.
  size_t last_cache_layer() const;
};

}  // namespace gemlet
