// The vision tower of Gemma 4 with its embedder, and the embedder of the unified model, which has no tower. MODEL.md
// has the formulas.
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

struct Gemma4Config {
  int64_t patch_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t pool = 0;       // pool x pool patches become one token
  int64_t positions = 0;  // positions that a patch can have in a row or a column
  bool clipped = false;   // inputs and outputs of matrices are clamped to stored bounds
  bool standardize = false;
  double rope_theta = 0;
  double rms_norm_eps = 0;
  // Throws kConfig, with the name of the field, if a value is out of range.
  void validate() const;
};

// The tower and the embedder below take an image as pixels [height, width, 3] from 0 to 1. Its sides must be multiples
// of token_pixels(). They write soft tokens to out [tokens, hidden_size()], row by row. They throw kInvalidRequest for
// another size, kCancelled once *cancel is true, and the errors of Model::run().
class Gemma4Tower {
 public:
  // Throws kConfig for a bad configuration, and kTensor if a weight is missing or has another shape.
  Gemma4Tower(std::shared_ptr<Model> model, const Gemma4Config& config);

  const Model& model() const { return *model_; }
  int64_t hidden_size() const { return model_->config().hidden_size; }
  int64_t token_pixels() const { return config_.patch_size * config_.pool; }  // along one side of a token
  void encode(const float* pixels, int64_t height, int64_t width, float* out, const Adapter* adapter = nullptr,
              const std::atomic<bool>* cancel = nullptr) const;

  // The bytes that encode() allocates for `tokens` tokens, in a model of `hidden_size` with weights of `format`.
  static int64_t activation_bytes(const Gemma4Config& config, int64_t tokens, int64_t hidden_size, Format format,
                                  const Backend& backend);

 private:
  struct Linear {
    Matrix weight;
    float input_min, input_max, output_min, output_max;
  };
  struct Layer {
    const float *input_norm, *post_attention_norm, *pre_mlp_norm, *post_mlp_norm, *q_norm, *k_norm;
    Linear q, k, v, o, gate, up, down;
  };
  class Pass;

  Linear linear(const std::string& name, int64_t rows, int64_t cols) const;

  std::shared_ptr<Model> model_;
  Gemma4Config config_;
  Matrix patch_embedding_, projection_;
  const float* position_embedding_;  // [2, positions, hidden_size]
  std::vector<Layer> layers_;
  const float* std_scale_ = nullptr;  // [hidden_size]
  DeviceMemory std_offset_;           // -bias * scale
};

struct UnifiedConfig {
  int64_t tile_size = 0;    // pixels along one side of a token
  int64_t hidden_size = 0;  // width of a tile's embedding
  int64_t positions = 0;    // positions that a tile can have in a row or a column
  double rms_norm_eps = 0;
  void validate() const;
};

class UnifiedEmbedder {
 public:
  UnifiedEmbedder(std::shared_ptr<Model> model, const UnifiedConfig& config);

  const Model& model() const { return *model_; }
  int64_t hidden_size() const { return model_->config().hidden_size; }
  int64_t token_pixels() const { return config_.tile_size; }
  void encode(const float* pixels, int64_t height, int64_t width, float* out, const Adapter* adapter = nullptr,
              const std::atomic<bool>* cancel = nullptr) const;

 private:
  struct Norm {
    const float *weight, *bias;
  };
  std::shared_ptr<Model> model_;
  UnifiedConfig config_;
  Norm norm1_, norm2_, position_norm_;
  Matrix dense_, projection_;
  const float *dense_bias_, *position_embedding_;  // [positions, 2, hidden_size]
};

}  // namespace gemlet::vision
