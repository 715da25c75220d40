// The vision tower of Gemma 3n: MobileNet-v5, and the embedder after it. MODEL.md has the formulas.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/adapter.h"
#include "model/batch.h"
#include "model/model.h"
#include "vision/mobilenet_plan.h"

namespace gemlet::vision {

class MobileNet {
 public:
  // Throws kConfig for a bad configuration, and kTensor if a weight is missing or has another shape.
  MobileNet(std::shared_ptr<Model> model, MobileNetConfig config);

  const Model& model() const { return *model_; }
  const MobileNetConfig& config() const { return config_; }
  int64_t hidden_size() const { return model_->config().hidden_size; }

  // Makes soft tokens, out [tokens(), hidden_size()], from pixels [height, width, 3] between 0 and 1. Other passes of
  // the model can run between its blocks. Throws kCancelled once *cancel is true, and the errors of Model::run().
  void encode(const float* pixels, float* out, const Adapter* adapter = nullptr,
              const std::atomic<bool>* cancel = nullptr, const TapSink* taps = nullptr) const;

  // The bytes that encode() allocates for a model of `hidden_size` with weights of `format`.
  static int64_t activation_bytes(const MobileNetConfig& config, int64_t hidden_size, Format format,
                                  const Backend& backend);

 private:
  struct Block {
    // kEdge and kInverted; the layer scale is in projection_norm
    const float *start = nullptr, *start_norm = nullptr, *middle = nullptr, *middle_norm = nullptr;
    Matrix expansion, projection;
    const float *expansion_norm = nullptr, *projection_norm = nullptr;
    // kAttention, whose output is `projection`
    Matrix query, key, value;
    const float *norm = nullptr, *scale = nullptr;
    const float *key_down = nullptr, *key_norm = nullptr, *value_down = nullptr, *value_norm = nullptr;
  };
  class Pass;

  const float* keep(Backend& backend, const std::vector<float>& values);
  std::vector<float> read(Backend& backend, const std::string& name, const std::vector<int64_t>& shape) const;
  const float* depthwise(Backend& backend, const std::string& name, int64_t channels, int64_t kernel);
  Block block(Backend& backend, const std::string& at, const MobileNetBlock& shape);

  std::shared_ptr<Model> model_;
  MobileNetConfig config_;
  std::vector<DeviceMemory> kept_;  // weights in another order
  Matrix stem_, fused_expansion_, fused_projection_, projection_;
  const float *stem_bias_, *stem_norm_, *fused_expansion_norm_, *fused_projection_norm_, *output_norm_, *soft_norm_;
  std::vector<std::vector<Block>> stages_;
};

}  // namespace gemlet::vision
