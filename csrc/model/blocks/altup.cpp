// Gemma 3n: a layer computes with stream 0 of several residual streams, and predicts and corrects the others (AltUp).
// It has a low-rank branch beside attention (LAuReL). Formulas: csrc/MODEL.md.
#include <algorithm>
#include <cmath>

#include "model/forward.h"

namespace gemlet {
namespace {

float router_scale(const ModelConfig& config) {
  return 1.0f / static_cast<float>(config.hidden_size);  // divided by d, not its root
}

}  // namespace

void ForwardPass::open_streams() {
  const int64_t hidden = config_.hidden_size;
  for (int64_t stream = 1; stream < config_.altup_streams; ++stream) {
    float* const x = residual_ + stream * rows_ * hidden;
    const auto place = static_cast<size_t>(stream - 1);
    project(place, {residual_, &weights_.altup_projections[place], Target::kAltupProjection, x});
    backend_.match_magnitude(residual_, rows_, hidden, x);
    tap("stream." + std::to_string(stream), x, hidden);
  }
}

float* ForwardPass::altup_route(size_t index, const float* x) {
  const AltupWeights& altup = weights_.layers[index].altup;
  float* const modalities = take(Region::kModalities, config_.altup_streams);
  norm(x, altup.router_norm, branch_);
  project(index, {branch_, &altup.router, Target::kAltupRouter, modalities});
  return modalities;
}

// Each row has the layer's coefficients, or those that its adapter has made of them.
std::vector<const float*> ForwardPass::altup_coefs(size_t index, Target target, const float* coefs) const {
  std::vector<const float*> found(static_cast<size_t>(rows_), coefs);
  for (const AdapterRun& run : runs_) {
    const LowRank* const term = run.adapter->term(target, index);
    if (term) std::fill_n(found.begin() + run.row, run.rows, term->changed);
  }
  return found;
}

float* ForwardPass::altup_predict(size_t index) {
  const AltupWeights& a = weights_.layers[index].altup;
  const int64_t hidden = config_.hidden_size, streams = config_.altup_streams;
  float* const predicted = take(Region::kPredicted, streams * hidden);
  const float* const modalities = altup_route(index, residual_);
  backend_.altup_predict(residual_, modalities, router_scale(config_),
                         altup_coefs(index, Target::kAltupPrediction, a.prediction_coefs), streams, hidden, predicted);
  return predicted;
}

void ForwardPass::altup_layer(size_t index) {
  const LayerWeights& w = weights_.layers[index];
  const AltupWeights& a = w.altup;
  const int64_t hidden = config_.hidden_size, streams = config_.altup_streams;
  float* const z = take(Region::kActive, hidden);
  float* const laurel = take(Region::kLaurel, hidden);
  float* const laurel_low = take(Region::kLaurelLow, config_.laurel_rank);

  const float* const predicted = altup_predict(index);
  backend_.copy(predicted, rows_ * hidden, z);
  norm(z, w.pre_attention_norm, normed_);

  project(index, {normed_, &a.laurel_left, Target::kLaurelLeft, laurel_low});
  project(index, {laurel_low, &a.laurel_right, Target::kLaurelRight, branch_});
  backend_.copy(normed_, rows_ * hidden, laurel);  // LAuReL's residual is the normed input
  add_normed(branch_, a.post_laurel_norm, laurel);

  attention(index);
  tap_layer(index, "attention", branch_, hidden);
  add_normed(branch_, w.post_attention_norm, z);
  backend_.add_branch(laurel, nullptr, eps_, rows_, hidden, z);
  backend_.scale(static_cast<float>(std::sqrt(0.5)), rows_ * hidden, z);

  norm(z, w.pre_mlp_norm, normed_);
  mlp(index);
  tap_layer(index, "mlp", branch_, hidden);
  add_normed(branch_, w.post_mlp_norm, z);

  const float* const modalities = altup_route(index, z);
  backend_.altup_correct(predicted, z, modalities, router_scale(config_),
                         altup_coefs(index, Target::kAltupCorrection, a.correction_coefs), streams, hidden, residual_);

  backend_.mul_rows(residual_, a.correct_scale, rows_, hidden, normed_);
  per_layer_input(index, normed_);
  for (int64_t stream = 1; stream < streams; ++stream) {  // stream 0 does not receive it
    float* const x = residual_ + stream * rows_ * hidden;
    add_normed(branch_, w.post_per_layer_input_norm, x);
    tap_layer(index, "stream." + std::to_string(stream), x, hidden);
  }
  tap_layer(index, "output", residual_, hidden);
}

// residual_ [rows, hidden] = the mean of stream 0 and of the others, projected back to its space and scaled to its
// magnitude.
void ForwardPass::close_streams() {
  const int64_t hidden = config_.hidden_size, streams = config_.altup_streams;
  float* const sum = take(Region::kActive, hidden);
  backend_.copy(residual_, rows_ * hidden, sum);
  for (int64_t stream = 1; stream < streams; ++stream) {
    const auto place = static_cast<size_t>(stream - 1);
    project(place, {residual_ + stream * rows_ * hidden, &weights_.altup_unembed_projections[place],
                    Target::kAltupUnembedProjection, branch_});
    backend_.match_magnitude(residual_, rows_, hidden, branch_);
    backend_.add_branch(branch_, nullptr, eps_, rows_, hidden, sum);
  }
  backend_.scale(1.0f / static_cast<float>(streams), rows_ * hidden, sum);
  backend_.copy(sum, rows_ * hidden, residual_);
}

}  // namespace gemlet
