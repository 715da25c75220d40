// The scratch memory of forward passes, as one list of regions. The memory plan adds up the list, and blocks of the
// model get their pointers from it. take() checks the size, so no block can use more than was planned.
#pragma once

#include <array>
#include <cstdint>

#include "backend/backend.h"
#include "model/config.h"

namespace gemlet {

// A row is a token of the pass. scratch.cpp says how many floats a row has in each region.
enum class Region : uint8_t {
  // In use for the whole pass.
  kResidual,        // [streams, rows, hidden]
  kNormed,          // [rows, hidden] input of a block
  kBranch,          // [rows, hidden] output of a block
  kRopeAngles,      // one table for each kind of rotation: cosines [rows, head_dim / 2], then sines
  kPerLayerInputs,  // [rows, layers, per_layer_input]
  kAdapterLow,      // [rows, rank] A x, of up to three matrices
  kAdapterDelta,    // [rows, dim] B (A x), of the same matrices
  kPredicted,       // [streams, rows, hidden] what AltUp predicts for after the layer
  kActive,          // [rows, hidden] stream 0 inside an AltUp layer
  kLaurel,          // [rows, hidden]
  kLaurelLow,       // [rows, laurel_rank]
  kModalities,      // [rows, streams]
  // In use during one block. Blocks share this memory.
  kQueries,          // [rows, heads, head_dim]
  kMixed,            // [rows, heads, head_dim] output of attention before o_proj
  kKeys,             // [rows, kv_heads, head_dim]
  kValues,           // [rows, kv_heads, head_dim]
  kGate,             // [rows, intermediate]
  kUp,               // [rows, intermediate]
  kRouterInput,      // [rows, hidden]
  kRouterScores,     // [rows, experts]
  kExpertInputs,     // [rows * experts_per_token, hidden]
  kExpertGateUp,     // [rows * experts_per_token, 2 * expert_intermediate]
  kExpertActivated,  // [rows * experts_per_token, expert_intermediate]
  kExpertOutputs,    // [rows * experts_per_token, hidden]
  kPerLayerGate,     // [rows, per_layer_input]
  kHeadInput,        // [rows that want logits, hidden]
  kTargetInputs,     // [rows, 2 * target_size] of an assistant
  kTargetStates,     // [rows, target_size]
  kCentroidScores,   // [rows, centroids]
  kCentroidLogits,   // centroid logits of one row
  kTextMeans,        // [texts, hidden]
  kDenseOutputs,     // [texts, outputs] of each matrix after the mean, one after the other
  kCount,
};

class Scratch {
 public:
  // `max_rank` is the highest rank of the pass's adapters; 0: no row has an adapter.
  static int64_t floats_per_row(const ModelConfig& config, int64_t max_rank);

  // Begins a pass over `rows` rows. The memory of the last pass is reused, and grows if this pass needs more. Earlier
  // pointers become invalid. Throws kMemory.
  void begin_pass(const ModelConfig& config, Backend& backend, int64_t rows, int64_t max_rank);

  // Returns a region, of which the caller uses `floats` floats. Throws kInternal if the region is smaller.
  float* take(Region region, int64_t floats);
  int64_t floats(Region region) const {
    return places_[static_cast<size_t>(region)].floats;
  }  // size of the region in this pass

  void release() { memory_ = DeviceMemory(); }

 private:
  struct Place {
    int64_t offset, floats;
  };
  DeviceMemory memory_;
  std::array<Place, static_cast<size_t>(Region::kCount)> places_ = {};
};

}  // namespace gemlet
