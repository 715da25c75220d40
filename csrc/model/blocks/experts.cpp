// Mixture of experts beside the MLP (Gemma 4 26B-A4B). A router picks the best few experts for each token. Rows are
// grouped by expert, so that each expert is read once and a decode step reads only the experts that it routes to.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/forward.h"

namespace gemlet {

void ForwardPass::add_experts(size_t index) {
  const LayerConfig& c = config_.layers[index];
  const ExpertWeights& w = weights_.layers[index].experts;
  const int64_t hidden = config_.hidden_size, width = c.expert_intermediate_size;
  const int64_t routed = rows_ * c.experts_per_token;
  float* const scores_input = take(Region::kRouterInput, hidden);
  float* const scores = take(Region::kRouterScores, c.num_experts);
  float* const inputs = take(Region::kExpertInputs, c.experts_per_token * hidden);
  float* const gate_up = take(Region::kExpertGateUp, c.experts_per_token * 2 * width);
  float* const activated = take(Region::kExpertActivated, c.experts_per_token * width);
  float* const outputs = take(Region::kExpertOutputs, c.experts_per_token * hidden);

  // The router sees the residual through one norm, the experts through another.
  norm(residual_, w.router_scale, scores_input);
  backend_.scale(static_cast<float>(1.0 / std::sqrt(static_cast<double>(hidden))), rows_ * hidden, scores_input);
  project(index, {scores_input, &w.router_proj, Target::kRouterProj, scores});
  std::vector<int32_t> ids(static_cast<size_t>(routed));
  std::vector<float> shares(static_cast<size_t>(routed));
  backend_.route(scores, w.router_per_expert_scale, rows_, c.num_experts, c.experts_per_token, ids.data(),
                 shares.data());

  // Routed rows are in the order of their experts: places[i] is where the i-th (row, choice) went.
  std::vector<int64_t> first(static_cast<size_t>(c.num_experts) + 1, 0);
  for (const int32_t id : ids) ++first[static_cast<size_t>(id) + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  std::vector<int32_t> places(ids.size()), sources(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const int64_t place = next[static_cast<size_t>(ids[i])]++;
    places[i] = static_cast<int32_t>(place);
    sources[static_cast<size_t>(place)] = static_cast<int32_t>(static_cast<int64_t>(i) / c.experts_per_token);
  }
  norm(residual_, w.pre_moe_norm, normed_);
  backend_.gather(normed_, sources, hidden, inputs);

  const ExpertRows routed_rows = {index, first, sources};
  multiply_experts(routed_rows, Target::kExpertGateUp, w.gate_up, inputs, gate_up);
  gelu_mul(gate_up, 2 * width, gate_up + width, 2 * width, routed, width, activated);
  multiply_experts(routed_rows, Target::kExpertDown, w.down, activated, outputs);
  backend_.combine(outputs, places, shares, c.experts_per_token, hidden, normed_);
  tap_layer(index, "moe", normed_, hidden);

  norm(branch_, w.post_dense_norm, branch_);
  add_normed(normed_, w.post_moe_norm, branch_);
}

// y of every routed row = its expert's matrix * x. The rows of an expert are in the order of the pass, so those of an
// adapter stand together.
void ForwardPass::multiply_experts(const ExpertRows& routed, Target target, std::span<const Matrix> weights,
                                   const float* x, float* y) {
  products_.clear();
  std::vector<Correction> corrections;
  for (size_t e = 0; e < weights.size(); ++e) {
    const Matrix& weight = weights[e];
    const int64_t begin = routed.first[e], end = routed.first[e + 1];
    if (begin == end) continue;
    products_.push_back({x + begin * weight.cols, end - begin, &weight, y + begin * weight.rows});
    const auto sources = routed.sources.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    for (const AdapterRun& run : runs_) {
      const LowRank* const term = run.adapter->term(target, routed.layer + e * config_.layers.size());
      if (!term) continue;
      const auto from = std::lower_bound(sources.begin(), sources.end(), run.row);
      const int64_t rows = std::lower_bound(from, sources.end(), run.row + run.rows) - from;
      const int64_t at = begin + (from - sources.begin());
      if (rows > 0) corrections.push_back({term, x + at * weight.cols, y + at * weight.rows, rows});
    }
  }
  multiply(corrections);
}

}  // namespace gemlet
