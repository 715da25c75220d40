// The audio encoders of Gemma 3n and Gemma 4: two convolutions, conformer blocks, and the projection to soft tokens.
// MODEL.md has the formulas.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/batch.h"
#include "model/model.h"

namespace gemlet::audio {

enum class Family : uint8_t { kGemma3n, kGemma4 };

struct ConformerConfig {
  Family family = Family::kGemma4;
  int64_t bins = 0;             // bins of the log-mel spectra
  int64_t first_channels = 0;   // channels of the first convolution
  int64_t second_channels = 0;  // channels of the second convolution
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t conv_taps = 0;    // taps of the convolution in a block
  int64_t keys = 0;         // keys that a query sees, including its own
  int64_t output_size = 0;  // Gemma 4: width of the encoder's output; Gemma 3n: hidden_size
  int64_t reduction = 1;    // Gemma 3n: of this many tokens, one is kept
  double logit_cap = 0;
  double residual_weight = 0;
  double rms_norm_eps = 0;
  double group_norm_eps = 0;  // Gemma 3n
  bool clipped = false;       // Gemma 4: inputs and outputs of its matrices are clamped

  int64_t head_dim() const { return hidden_size / num_heads; }
  int64_t conv_bins() const { return (bins + 3) / 4; }  // after both convolutions
  // The number of soft tokens of a sound with `frames` frames, of which the first `valid` count.
  int64_t tokens(int64_t frames, int64_t valid) const;
  // Throws kConfig, with the name of the field, if a value is out of range.
  void validate() const;

  // The number of rows that the blocks compute for such a sound. Later rows would change no soft token.
  int64_t block_rows(int64_t frames, int64_t valid) const;
};

class Conformer {
 public:
  static constexpr int64_t kMostFrames = 1 << 14;

  // Throws kConfig for a bad configuration, and kTensor if a weight is missing or has another shape.
  Conformer(std::shared_ptr<Model> model, const ConformerConfig& config);

  const Model& model() const { return *model_; }
  const ConformerConfig& config() const { return config_; }
  int64_t hidden_size() const { return model_->config().hidden_size; }

  // Makes soft tokens, out [tokens(), hidden_size()], from log-mel spectra [frames, bins]. Other passes of the model
  // can run between its layers. Throws kInvalidRequest if there is no token or if there are too many frames, kCancelled
  // once *cancel is true, and the errors of Model::run().
  void encode(const float* features, int64_t frames, int64_t valid, float* out, const Adapter* adapter = nullptr,
              const std::atomic<bool>* cancel = nullptr, const TapSink* taps = nullptr) const;

  // The bytes that encode() allocates for `frames` frames, in a model of `hidden_size` with weights of `format`.
  static int64_t activation_bytes(const ConformerConfig& config, int64_t frames, int64_t hidden_size, Format format,
                                  const Backend& backend);

 private:
  struct Linear {
    Matrix weight;
    float input_low, input_high, output_low, output_high;  // infinite: not clamped
  };
  struct FeedForward {
    const float* pre_norm;
    Linear up, down;
    const float* post_norm;
  };
  struct Layer {
    FeedForward start, end;
    const float* attention_norm;
    Linear q, k, v, out;
    Matrix relative;
    const float* query_scale;  // [hidden_size]
    const float* attention_post_norm;
    const float* conv_pre_norm;
    Linear conv_start, conv_end;
    const float* conv_weight;  // [conv_taps, hidden_size]
    const float* conv_norm;
    const float* norm;
  };
  class Pass;

  Linear linear(Backend& backend, const std::string& name, int64_t rows, int64_t cols) const;
  FeedForward feed_forward(Backend& backend, const std::string& at) const;
  Layer layer(Backend& backend, const std::string& at);
  const float* keep(Backend& backend, const std::vector<float>& values);

  std::shared_ptr<Model> model_;
  ConformerConfig config_;
  std::vector<DeviceMemory> kept_;  // arrays computed from the weights
  Matrix convolutions_[2];
  const float* conv_norms_[2];
  Matrix input_projection_;
  const float* timescales_;  // [keys, hidden_size]: sines and cosines of the distances
  std::vector<Layer> layers_;
  Matrix output_projection_;  // Gemma 4
  const float* output_bias_ = nullptr;
  const float* soft_norm_ = nullptr;  // Gemma 3n
  Matrix projection_;
};

}  // namespace gemlet::audio
