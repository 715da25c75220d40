// A model as data: one LayerConfig per layer drives the one forward pass. Filled by Python from config.json or GGUF metadata.
#pragma once

#include <cstdint>
#include <vector>

namespace gemlet {

struct LayerConfig {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  double query_scale = 0;           // query_pre_attn_scalar^-1/2; not always head_dim^-1/2
  double rope_theta = 0;
  double rope_scaling_factor = 1;   // linear: angles divided by this
  int64_t sliding_window = 0;       // 0 = full attention; counts the token itself
  double attention_softcap = 0;     // 0 = none
  bool qk_norm = false;             // RMS norm of every query and key head before the rotation
  bool post_norms = false;          // RMS norm of each branch before it joins the residual

  // Layers of one kind share a table of cache blocks.
  bool same_cache(const LayerConfig& other) const {
    return sliding_window == other.sliding_window && num_kv_heads == other.num_kv_heads && head_dim == other.head_dim;
  }
  bool same_rope(const LayerConfig& other) const {
    return rope_theta == other.rope_theta && rope_scaling_factor == other.rope_scaling_factor &&
           head_dim == other.head_dim;
  }
};

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t max_context = 0;
  double rms_norm_eps = 0;
  double embedding_scale = 0;
  double final_softcap = 0;      // 0 = none
  double norm_offset = 0;        // added to every norm weight while loading: 1 where checkpoints store w of (1 + w)
  bool tied_embeddings = true;   // the output head is the embedding table
  std::vector<LayerConfig> layers;

  // Throws Error{kConfig} naming the field if a value is out of range or sizes would overflow.
  void validate() const;
};

}  // namespace gemlet
