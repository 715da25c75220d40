// The typed weights of a model. Matrices are packed (formats/formats.h) and not owned here: ModelBuilder's buffers own them.
#pragma once

#include <vector>

#include "formats/formats.h"

namespace gemlet {

struct LayerWeights {
  const float* pre_attention_norm = nullptr;   // [hidden]
  Matrix q_proj;                               // [heads * head_dim, hidden]
  Matrix k_proj;                               // [kv_heads * head_dim, hidden]
  Matrix v_proj;                               // [kv_heads * head_dim, hidden]
  Matrix o_proj;                               // [hidden, heads * head_dim]
  const float* q_norm = nullptr;               // [head_dim], if qk_norm
  const float* k_norm = nullptr;               // [head_dim], if qk_norm
  const float* post_attention_norm = nullptr;  // [hidden], if post_norms
  const float* pre_mlp_norm = nullptr;         // [hidden]
  Matrix gate_proj;                            // [intermediate, hidden]
  Matrix up_proj;                              // [intermediate, hidden]
  Matrix down_proj;                            // [hidden, intermediate]
  const float* post_mlp_norm = nullptr;        // [hidden], if post_norms
};

struct ModelWeights {
  Matrix embed_tokens;                // [vocab, hidden]
  Matrix lm_head;                     // [vocab, hidden]; the same matrix where tied
  const float* final_norm = nullptr;  // [hidden]
  std::vector<LayerWeights> layers;
};

}  // namespace gemlet
