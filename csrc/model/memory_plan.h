// Computes the memory that a model needs, before it is allocated.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace gemlet {

// Bytes by purpose.
struct MemoryPlan {
  int64_t weights = 0;      // all matrices and vectors except the embedding
  int64_t embedding = 0;    // the token embedding, and the output head if it is another matrix; if they are on disk,
                            // what is in memory at a time
  int64_t kv_cache = 0;     // keys and values of one sequence that fills the context
  int64_t activations = 0;  // scratch and logits of a full chunk of a prompt (bidirectional: of a text)
  int64_t on_disk = 0;      // the per-layer table, and the embedding if it is on disk
};

// The memory of a pass over most_rows() rows: the scratch memory of the model and of the backend on `threads` threads,
// and one row of logits. It depends only on the shapes and formats of the weights.
int64_t activation_bytes(const ModelConfig& config, const ModelWeights& weights, const Backend& backend, int threads);

// The memory that adapters of at most this rank need in addition.
int64_t adapter_activation_bytes(const ModelConfig& config, Format adapter_format, const Backend& backend,
                                 int64_t max_rank);

}  // namespace gemlet
