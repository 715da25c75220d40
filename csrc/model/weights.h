// The weights of a model's forward pass. Matrices are packed (formats/formats.h). ModelBuilder's buffers own their
// memory. A null pointer or an empty matrix means that the model's configuration does not have this weight.
#pragma once

#include <vector>

#include "formats/formats.h"
#include "formats/row_table.h"

namespace gemlet {

// The most bytes of an on-disk embedding that are in memory at a time.
inline constexpr int64_t kResidentEmbeddingBytes = int64_t{32} << 20;

// Routed experts beside the MLP; m = expert_intermediate_size.
struct ExpertWeights {
  const float* pre_moe_norm = nullptr;             // [hidden] of the experts' input
  const float* post_dense_norm = nullptr;          // [hidden] of the MLP beside them
  const float* post_moe_norm = nullptr;            // [hidden] of the experts' sum
  const float* router_scale = nullptr;             // [hidden]
  Matrix router_proj;                              // [experts, hidden]
  const float* router_per_expert_scale = nullptr;  // [experts]
  std::vector<Matrix> gate_up;                     // per expert [2 m, hidden]: gate rows, then up rows
  std::vector<Matrix> down;                        // per expert [hidden, m]
};

// AltUp and LAuReL of a Gemma 3n layer; S = altup_streams.
struct AltupWeights {
  const float* router_norm = nullptr;       // [hidden]
  Matrix router;                            // [S, hidden]
  const float* prediction_coefs = nullptr;  // [S * S, S]
  const float* correction_coefs = nullptr;  // [S, S]
  const float* correct_scale = nullptr;     // [hidden]
  Matrix laurel_left;                       // [laurel_rank, hidden]
  Matrix laurel_right;                      // [hidden, laurel_rank]
  const float* post_laurel_norm = nullptr;  // [hidden]
};

struct LayerWeights {
  const float* pre_attention_norm = nullptr;         // [hidden]
  Matrix q_proj;                                     // [heads * head_dim, hidden]
  Matrix k_proj;                                     // [kv_heads * head_dim, hidden]; none where kv_source is set
  Matrix v_proj;                                     // [kv_heads * head_dim, hidden]; none where key_is_value
  Matrix o_proj;                                     // [hidden, heads * head_dim]
  const float* q_norm = nullptr;                     // [head_dim], if qk_norm
  const float* k_norm = nullptr;                     // [head_dim], if qk_norm
  const float* post_attention_norm = nullptr;        // [hidden], if post_norms
  const float* pre_mlp_norm = nullptr;               // [hidden]
  Matrix gate_proj;                                  // [intermediate, hidden]
  Matrix up_proj;                                    // [intermediate, hidden]
  Matrix down_proj;                                  // [hidden, intermediate]
  const float* post_mlp_norm = nullptr;              // [hidden], if post_norms
  ExpertWeights experts;                             // only if num_experts > 0
  Matrix per_layer_input_gate;                       // [per_layer_input, hidden]
  Matrix per_layer_projection;                       // [hidden, per_layer_input]
  const float* post_per_layer_input_norm = nullptr;  // [hidden]
  const float* layer_scalar = nullptr;               // [1]
  AltupWeights altup;                                // only if altup_streams > 1
};

struct ModelWeights {
  Matrix embed_tokens;                               // [vocab, hidden]
  Matrix lm_head;                                    // [vocab, hidden]; the same matrix where tied
  bool embedding_on_disk = false;                    // these two are in a file and never resident as a whole
  const float* final_norm = nullptr;                 // [hidden]
  RowTable per_layer_table;                          // [per_layer_vocab, layers * per_layer_input], stays in its file
  Matrix per_layer_model_projection;                 // [layers * per_layer_input, hidden]
  const float* per_layer_projection_norm = nullptr;  // [per_layer_input]
  std::vector<Matrix> altup_projections;             // S - 1 matrices [hidden, hidden] to the other streams
  std::vector<Matrix> altup_unembed_projections;     // S - 1 matrices [hidden, hidden] back from them
  Matrix pre_projection;                             // only assistants: [hidden, 2 target_size]
  Matrix post_projection;                            // only assistants: [target_size, hidden]
  Matrix centroids;                                  // [centroids, hidden], if an assistant has centroids
  std::vector<int32_t> token_order;                  // with centroids: the id of each row of lm_head
  std::vector<Matrix> dense;                         // [dense_sizes[i], dense_sizes[i - 1] or hidden]
  std::vector<LayerWeights> layers;
};

}  // namespace gemlet
