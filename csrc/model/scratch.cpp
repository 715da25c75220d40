#include "model/scratch.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "model/rope.h"

namespace gemlet {
namespace {

// The part of a pass in which a region is in use. Two regions share memory if neither is in use for the whole pass and
// their uses differ.
enum class Use : uint8_t { kPass, kAttention, kMlp, kExperts, kPerLayerInput, kHead, kCount };
constexpr auto kUses = static_cast<size_t>(Use::kCount);
constexpr auto kRegions = static_cast<size_t>(Region::kCount);

// The largest size among all layers.
struct Widths {
  explicit Widths(const ModelConfig& config) {
    for (const LayerConfig& layer : config.layers) {
      queries = std::max(queries, layer.num_heads * layer.head_dim);
      keys = std::max(keys, layer.num_kv_heads * layer.head_dim);
      intermediate = std::max(intermediate, layer.intermediate_size);
      experts = std::max(experts, layer.num_experts);
      if (layer.num_experts > 0) routed = std::max(routed, layer.experts_per_token);
      expert_intermediate = std::max(expert_intermediate, layer.expert_intermediate_size);
    }
    for (const LayerConfig* kind : rope_kinds(config)) rope += kind->head_dim;
  }
  int64_t queries = 0, keys = 0, intermediate = 0;
  int64_t experts = 0, routed = 0, expert_intermediate = 0;
  int64_t rope = 0;  // the sum over all kinds of rotation
};

struct Size {
  Use use;
  int64_t floats;  // floats of one row
};

Size size_of(Region region, const ModelConfig& c, const Widths& w, int64_t max_rank) {
  const auto layers = static_cast<int64_t>(c.layers.size());
  const int64_t altup = c.altup_streams > 1 ? 1 : 0;
  switch (region) {
    case Region::kResidual:
      return {Use::kPass, c.altup_streams * c.hidden_size};
    case Region::kNormed:
    case Region::kBranch:
      return {Use::kPass, c.hidden_size};
    case Region::kRopeAngles:
      return {Use::kPass, w.rope};
    case Region::kPerLayerInputs:
      return {Use::kPass, layers * c.per_layer_input_size};
    case Region::kAdapterLow:
      return {Use::kPass, 3 * max_rank};
    case Region::kAdapterDelta:  // the delta of q, k and v, of gate and up, or of one other matrix
      return {Use::kPass, max_rank == 0 ? 0
                                        : std::max({w.queries + 2 * w.keys, 2 * w.intermediate, c.hidden_size,
                                                    c.embedding_size(), layers * c.per_layer_input_size, w.experts,
                                                    2 * w.expert_intermediate, c.laurel_rank, kPanelRows})};
    case Region::kPredicted:
      return {Use::kPass, altup * c.altup_streams * c.hidden_size};
    case Region::kActive:
    case Region::kLaurel:
      return {Use::kPass, altup * c.hidden_size};
    case Region::kLaurelLow:
      return {Use::kPass, altup * c.laurel_rank};
    case Region::kModalities:
      return {Use::kPass, altup * c.altup_streams};
    case Region::kQueries:
    case Region::kMixed:
      return {Use::kAttention, w.queries};
    case Region::kKeys:
    case Region::kValues:
      return {Use::kAttention, w.keys};
    case Region::kGate:
    case Region::kUp:
      return {Use::kMlp, w.intermediate};
    case Region::kRouterInput:
      return {Use::kExperts, w.experts > 0 ? c.hidden_size : 0};
    case Region::kRouterScores:
      return {Use::kExperts, w.experts};
    case Region::kExpertInputs:
    case Region::kExpertOutputs:
      return {Use::kExperts, w.routed * c.hidden_size};
    case Region::kExpertGateUp:
      return {Use::kExperts, w.routed * 2 * w.expert_intermediate};
    case Region::kExpertActivated:
      return {Use::kExperts, w.routed * w.expert_intermediate};
    case Region::kPerLayerGate:
      return {Use::kPerLayerInput, c.per_layer_input_size};
    case Region::kHeadInput:
      return {Use::kHead, c.bidirectional ? 0 : c.hidden_size};
    case Region::kTargetInputs:
      return {Use::kAttention, 2 * c.target_size};
    case Region::kTargetStates:
      return {Use::kHead, c.target_size};
    case Region::kCentroidScores:
      return {Use::kHead, c.centroids};
    case Region::kCentroidLogits:  // each row has its own, as if all were computed at the same time
      return {Use::kHead, c.centroids > 0 ? c.centroids_per_token * (c.vocab_size / c.centroids + 2 * kPanelRows) : 0};
    case Region::kTextMeans:
      return {Use::kHead, c.bidirectional ? c.hidden_size : 0};
    case Region::kDenseOutputs:
      return {Use::kHead, std::accumulate(c.dense_sizes.begin(), c.dense_sizes.end(), int64_t{0})};
    case Region::kCount:
      break;
  }
  fail(ErrorCode::kInternal, "scratch region ", static_cast<int>(region), " has no size");
}

// Calls place(region, first float, floats) for every region, both for one row. Returns the floats of a row.
template <typename Place>
int64_t lay_out(const ModelConfig& config, int64_t max_rank, const Place& place) {
  const Widths widths(config);
  std::array<int64_t, kUses> ends = {};  // where each use ends
  const auto add = [&](bool whole_pass, int64_t start) {
    for (size_t i = 0; i < kRegions; ++i) {
      const auto region = static_cast<Region>(i);
      const Size size = size_of(region, config, widths, max_rank);
      if ((size.use == Use::kPass) != whole_pass) continue;
      int64_t& end = ends[static_cast<size_t>(size.use)];
      place(region, start + end, size.floats);
      end += size.floats;
    }
  };
  add(true, 0);
  const int64_t shared = ends[static_cast<size_t>(Use::kPass)];
  add(false, shared);
  return shared + *std::max_element(ends.begin() + 1, ends.end());
}

}  // namespace

int64_t Scratch::floats_per_row(const ModelConfig& config, int64_t max_rank) {
  return lay_out(config, max_rank, [](Region, int64_t, int64_t) {});
}

void Scratch::begin_pass(const ModelConfig& config, Backend& backend, int64_t rows, int64_t max_rank) {
  const int64_t floats = lay_out(config, max_rank, [&](Region region, int64_t first, int64_t row_floats) {
    places_[static_cast<size_t>(region)] = {rows * first, rows * row_floats};
  });
  const size_t bytes = static_cast<size_t>(rows * floats) * sizeof(float);
  if (memory_.size() >= bytes) return;
  memory_ = DeviceMemory();  // give the old one back first
  memory_ = backend.allocate(bytes);
}

float* Scratch::take(Region region, int64_t floats) {
  const Place& place = places_[static_cast<size_t>(region)];
  if (floats > place.floats) {
    fail(ErrorCode::kInternal, "scratch region ", static_cast<int>(region), " has ", place.floats,
         " floats in this pass, but ", floats, " are to be used");
  }
  return memory_.as<float>() + place.offset;
}

}  // namespace gemlet
