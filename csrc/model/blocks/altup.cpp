// Gemma 3n: several residual streams (AltUp), of which a layer computes with stream 0 and predicts and corrects the
// others, and a low-rank branch beside attention (LAuReL). Formulas: csrc/MODEL.md.
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
    float* const x = x_ + stream * rows_ * hidden;
    const Product projection = {x_, rows_, &weights_.altup_projections[static_cast<size_t>(stream - 1)], x};
    backend_.matmul({&projection, 1});
    backend_.match_magnitude(x_, rows_, hidden, x);
    tap("stream." + std::to_string(stream), x, hidden);
  }
}

void ForwardPass::altup_route(const AltupWeights& altup, const float* x) {
  backend_.rms_norm(x, altup.router_norm, eps_, rows_, config_.hidden_size, branch_);
  const Product router = {branch_, rows_, &altup.router, modalities_};
  backend_.matmul({&router, 1});
}

void ForwardPass::altup_predict(size_t index) {
  const AltupWeights& a = weights_.layers[index].altup;
  altup_route(a, x_);
  backend_.altup_predict(x_, modalities_, router_scale(config_), a.prediction_coefs, config_.altup_streams, rows_,
                         config_.hidden_size, predicted_);
}

void ForwardPass::altup_layer(size_t index) {
  const LayerWeights& w = weights_.layers[index];
  const AltupWeights& a = w.altup;
  const int64_t hidden = config_.hidden_size, streams = config_.altup_streams;

  altup_predict(index);
  float* const z = last_;  // [rows, hidden] stream 0 on its way through the layer
  backend_.copy(predicted_, rows_ * hidden, z);
  backend_.rms_norm(z, w.pre_attention_norm, eps_, rows_, hidden, normed_);

  const Product left = {normed_, rows_, &a.laurel_left, low_rank_};
  backend_.matmul({&left, 1});
  const Product right = {low_rank_, rows_, &a.laurel_right, branch_};
  backend_.matmul({&right, 1});
  backend_.copy(normed_, rows_ * hidden, laurel_);  // LAuReL's residual is the normed input
  backend_.add_branch(branch_, a.post_laurel_norm, eps_, rows_, hidden, laurel_);

  attention(index);
  tap_layer(index, "attention", branch_, hidden);
  backend_.add_branch(branch_, w.post_attention_norm, eps_, rows_, hidden, z);
  backend_.add_branch(laurel_, nullptr, eps_, rows_, hidden, z);
  backend_.scale(static_cast<float>(std::sqrt(0.5)), rows_ * hidden, z);

  backend_.rms_norm(z, w.pre_mlp_norm, eps_, rows_, hidden, normed_);
  mlp(index);
  tap_layer(index, "mlp", branch_, hidden);
  backend_.add_branch(branch_, w.post_mlp_norm, eps_, rows_, hidden, z);

  altup_route(a, z);
  backend_.altup_correct(predicted_, z, modalities_, router_scale(config_), a.correction_coefs, streams, rows_, hidden,
                         x_);

  backend_.mul_rows(x_, a.correct_scale, rows_, hidden, normed_);
  per_layer_input(index, normed_);
  for (int64_t stream = 1; stream < streams; ++stream) {  // stream 0 does not receive it
    float* const x = x_ + stream * rows_ * hidden;
    backend_.add_branch(branch_, w.post_per_layer_input_norm, eps_, rows_, hidden, x);
    tap_layer(index, "stream." + std::to_string(stream), x, hidden);
  }
  tap_layer(index, "output", x_, hidden);
}

// x_ [rows, hidden] = the mean of stream 0 and the others, brought back to its space and magnitude.
void ForwardPass::close_streams() {
  const int64_t hidden = config_.hidden_size, streams = config_.altup_streams;
  backend_.copy(x_, rows_ * hidden, last_);
  for (int64_t stream = 1; stream < streams; ++stream) {
    const Matrix& unembed = weights_.altup_unembed_projections[static_cast<size_t>(stream - 1)];
    const Product back = {x_ + stream * rows_ * hidden, rows_, &unembed, branch_};
    backend_.matmul({&back, 1});
    backend_.match_magnitude(x_, rows_, hidden, branch_);
    backend_.add_branch(branch_, nullptr, eps_, rows_, hidden, last_);
  }
  backend_.scale(1.0f / static_cast<float>(streams), rows_ * hidden, last_);
  backend_.copy(last_, rows_ * hidden, x_);
}

}  // namespace gemlet
