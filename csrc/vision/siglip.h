// The vision tower of Gemma 3: SigLIP, and the projector after it. MODEL.md has the formulas.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/batch.h"
#include "model/model.h"

namespace gemlet::vision {

struct SiglipConfig {
  int64_t image_size = 0;  // pixels of a side
  int64_t patch_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  double layer_norm_eps = 0;
  int64_t tokens_per_side = 0;  // soft tokens along one side of an image

  int64_t grid() const { return image_size / patch_size; }
  int64_t patches() const { return grid() * grid(); }
  int64_t head_dim() const { return hidden_size / num_heads; }
  int64_t tokens() const { return tokens_per_side * tokens_per_side; }
  // Throws kConfig, with the name of the field, if a value is out of range.
  void validate() const;
};

class Siglip {
 public:
  // Throws kConfig for a bad configuration, and kTensor if a weight is missing or has another shape.
  Siglip(std::shared_ptr<Model> model, const SiglipConfig& config);

  const Model& model() const { return *model_; }
  const SiglipConfig& config() const { return config_; }
  int64_t hidden_size() const { return model_->config().hidden_size; }

  // Makes soft tokens, out [tokens(), hidden_size()], from normalised pixels [image_size, image_size, 3]. Other passes
  // of the model can run between its layers. Throws kCancelled once *cancel is true, and the errors of Model::run().
  void encode(const float* pixels, float* out, const Adapter* adapter = nullptr,
              const std::atomic<bool>* cancel = nullptr, const TapSink* taps = nullptr) const;

  // The bytes that encode() allocates for a model of `hidden_size` with weights of `format`.
  static int64_t activation_bytes(const SiglipConfig& config, int64_t hidden_size, Format format,
                                  const Backend& backend);

 private:
  struct Linear {
    Matrix weight;
    const float* bias;
  };
  struct Norm {
    const float *weight, *bias;
  };
  struct Layer {
    Norm norm1, norm2;
    Linear q, k, v, out, fc1, fc2;
  };
  class Pass;

  Linear linear(const std::string& name, int64_t rows, int64_t cols) const;
  Norm norm(const std::string& name) const;

  std::shared_ptr<Model> model_;
  SiglipConfig config_;
  Linear patch_embedding_;
  const float* position_embedding_;  // [patches, hidden_size]
  std::vector<Layer> layers_;
  Norm post_norm_;
  const float* soft_norm_;
  Matrix projection_;
};

}  // namespace gemlet::vision
