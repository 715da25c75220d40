#include "vision/siglip.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "model/tower_products.h"
#include "vision/patches.h"
#include "vision/self_attention.h"

namespace gemlet::vision {
namespace {

int64_t mlp_rows(const SiglipConfig& config) { return std::min(kMlpRows, config.patches()); }

// Buffers of floats [patches, hidden_size]: the residual, the output of a norm, and q, k and v of attention.
constexpr int64_t kRowBuffers = 5;

// Returns the pixels of each patch in the order of the convolution's weights: channel, row, column.
std::vector<float> patch_rows(const float* pixels, const SiglipConfig& config) {
  const int64_t size = config.patch_size, grid = config.grid();
  std::vector<float> rows(static_cast<size_t>(config.patches() * kChannels * size * size));
  float* to = rows.data();
  for (int64_t patch = 0; patch < config.patches(); ++patch) {
    const int64_t top = patch / grid * size, left = patch % grid * size;
    for (int64_t channel = 0; channel < kChannels; ++channel) {
      for (int64_t y = 0; y < size; ++y) {
        const float* from = pixels + ((top + y) * config.image_size + left) * kChannels + channel;
        for (int64_t x = 0; x < size; ++x) *to++ = from[x * kChannels];
      }
    }
  }
  return rows;
}

}  // namespace

void SiglipConfig::validate() const {
  check_range("vision: ", "image_size", image_size, 1, 1 << 14);
  check_range("vision: ", "patch_size", patch_size, 1, image_size);
  if (image_size % patch_size != 0) {
    fail(ErrorCode::kConfig, "vision: image_size is ", image_size, ", expected a multiple of patch_size, ", patch_size);
  }
  check_range("vision: ", "patches", patches(), 1, 1 << 16);
  check_range("vision: ", "hidden_size", hidden_size, 1, 1 << 16);
  check_range("vision: ", "intermediate_size", intermediate_size, 1, 1 << 18);
  check_range("vision: ", "num_layers", num_layers, 1, 512);
  check_range("vision: ", "num_heads", num_heads, 1, hidden_size);
  if (hidden_size % num_heads != 0 || head_dim() % 2 != 0 || head_dim() > kMaxHeadDim) {
    fail(ErrorCode::kConfig, "vision: hidden_size is ", hidden_size, ", expected ", num_heads,
         " times an even number up to ", kMaxHeadDim);
  }
  check_range("vision: ", "tokens_per_side", tokens_per_side, 1, grid());
  if (grid() % tokens_per_side != 0) {
    fail(ErrorCode::kConfig, "vision: there are ", grid(), " patches in a row, expected a multiple of the ",
         tokens_per_side, " soft tokens in a row");
  }
  if (!(layer_norm_eps > 0 && layer_norm_eps < 1)) {
    fail(ErrorCode::kConfig, "vision: layer_norm_eps is ", layer_norm_eps, ", expected a number from 0 to 1");
  }
}

Siglip::Linear Siglip::linear(const std::string& name, int64_t rows, int64_t cols) const {
  const Tensors& tensors = model_->towers();
  return {tensors.matrix(name, rows, cols), tensors.floats(name + "_bias", {rows})};
}

Siglip::Norm Siglip::norm(const std::string& name) const {
  const Tensors& tensors = model_->towers();
  return {tensors.floats(name, {config_.hidden_size}), tensors.floats(name + "_bias", {config_.hidden_size})};
}

Siglip::Siglip(std::shared_ptr<Model> model, const SiglipConfig& config) : model_(std::move(model)), config_(config) {
  config_.validate();
  model_->read_weights([&](const ModelWeights&) {
    const Tensors& tensors = model_->towers();
    const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
    patch_embedding_ = linear("vision.patch_embedding", hidden, kChannels * config_.patch_size * config_.patch_size);
    position_embedding_ = tensors.floats("vision.position_embedding", {config_.patches(), hidden});
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const std::string at = "vision.layers." + std::to_string(i) + ".";
      layers_.push_back({norm(at + "norm1"), norm(at + "norm2"), linear(at + "q_proj", hidden, hidden),
                         linear(at + "k_proj", hidden, hidden), linear(at + "v_proj", hidden, hidden),
                         linear(at + "out_proj", hidden, hidden), linear(at + "fc1", inner, hidden),
                         linear(at + "fc2", hidden, inner)});
    }
    post_norm_ = norm("vision.post_norm");
    soft_norm_ = tensors.floats("vision.soft_norm", {hidden});
    projection_ = tensors.matrix("vision.projection", model_->config().hidden_size, hidden);
  });
}

int64_t Siglip::activation_bytes(const SiglipConfig& config, int64_t hidden_size, Format format,
                                 const Backend& backend) {
  const int64_t patches = config.patches(), hidden = config.hidden_size, rows = mlp_rows(config);
  const int64_t pixels = patches * kChannels * config.patch_size * config.patch_size;  // they lie on the host twice
  const int64_t floats =
      kRowBuffers * patches * hidden + rows * config.intermediate_size + 3 * pixels + config.tokens() * hidden_size * 2;
  const int64_t prepared = std::max({backend.prepared_bytes({format, hidden, hidden}, patches),
                                     backend.prepared_bytes({format, hidden, config.intermediate_size}, rows),
                                     backend.prepared_bytes({format, hidden, pixels / patches}, patches)});
  return floats * static_cast<int64_t>(sizeof(float)) +
         SelfAttention::bytes(backend, config.num_heads, config.head_dim(), format, patches) + prepared;
}

// One pass of an image through the tower, with its own memory.
class Siglip::Pass {
 public:
  Pass(const Siglip& tower, Backend& backend, const Adapter* adapter, const TapSink* taps)
      : tower_(tower),
        config_(tower.config_),
        taps_(taps),
        products_(adapter),
        patches_(config_.patches()),
        hidden_(config_.hidden_size),
        attention_(backend, shape_of(config_), tower.layers_[0].q.weight.format, patches_) {
    const auto floats = [](int64_t count) { return static_cast<size_t>(count) * sizeof(float); };
    const int64_t row_floats = patches_ * hidden_;
    memory_ = backend.allocate(floats(kRowBuffers * row_floats + mlp_rows(config_) * config_.intermediate_size));
    x_ = memory_.as<float>();
    normed_ = x_ + row_floats;
    q_ = normed_ + row_floats;
    k_ = q_ + row_floats;
    v_ = k_ + row_floats;
    inner_ = v_ + row_floats;
  }

  void embed(Backend& backend, const std::vector<float>& pixels) {
    DeviceMemory memory = backend.allocate(pixels.size() * sizeof(float));
    backend.upload(pixels.data(), pixels.size() * sizeof(float), memory.data());
    multiply(backend, memory.as<float>(), patches_, tower_.patch_embedding_, x_);
    backend.add_branch(tower_.position_embedding_, nullptr, 0, patches_, hidden_, x_);
    tap(backend, "embed", x_, patches_, hidden_);
  }

  void layer(Backend& backend, int64_t index) {
    const Layer& layer = tower_.layers_[static_cast<size_t>(index)];
    normalize(backend, layer.norm1, x_, normed_);
    const Product products[] = {{normed_, patches_, &layer.q.weight, q_},
                                {normed_, patches_, &layer.k.weight, k_},
                                {normed_, patches_, &layer.v.weight, v_}};
    products_.multiply(backend, products);
    backend.add_bias(layer.q.bias, patches_, hidden_, q_);
    backend.add_bias(layer.k.bias, patches_, hidden_, k_);
    backend.add_bias(layer.v.bias, patches_, hidden_, v_);
    attention_.run(backend, q_, k_, v_, {}, nullptr, nullptr, normed_);
    multiply(backend, normed_, patches_, layer.out, q_);
    backend.add_branch(q_, nullptr, 0, patches_, hidden_, x_);
    normalize(backend, layer.norm2, x_, normed_);
    for (int64_t row = 0; row < patches_; row += kMlpRows) {
      const int64_t rows = std::min(kMlpRows, patches_ - row);
      const Product up = {normed_ + row * hidden_, rows, &layer.fc1.weight, inner_};
      products_.multiply(backend, up);
      backend.bias_gelu(layer.fc1.bias, rows, config_.intermediate_size, inner_);
      multiply(backend, inner_, rows, layer.fc2, q_ + row * hidden_);
    }
    backend.add_branch(q_, nullptr, 0, patches_, hidden_, x_);
    if (taps_) tap(backend, "layers." + std::to_string(index), x_, patches_, hidden_);
  }

  void project(Backend& backend, float* out) {
    const int64_t tokens = config_.tokens(), dim = tower_.hidden_size();
    const auto eps = static_cast<float>(config_.layer_norm_eps);
    normalize(backend, tower_.post_norm_, x_, normed_);
    tap(backend, "features", normed_, patches_, hidden_);
    backend.mean_pool(normed_, config_.grid(), config_.grid(), hidden_, config_.grid() / config_.tokens_per_side, q_);
    backend.rms_norm(q_, tower_.soft_norm_, eps, tokens, hidden_, q_);
    const size_t bytes = static_cast<size_t>(tokens * dim) * sizeof(float);
    DeviceMemory soft = backend.allocate(bytes);
    const Product product = {q_, tokens, &tower_.projection_, soft.as<float>()};
    products_.multiply(backend, product);
    backend.download(soft.data(), bytes, out);
  }

 private:
  static AttentionShape shape_of(const SiglipConfig& config) {
    AttentionShape shape = {};
    shape.num_heads = shape.num_kv_heads = config.num_heads;
    shape.head_dim = config.head_dim();
    shape.query_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim()));
    return shape;
  }
  void multiply(Backend& backend, const float* x, int64_t rows, const Linear& linear, float* out) {
    const Product product = {x, rows, &linear.weight, out};
    products_.multiply(backend, product);
    backend.add_bias(linear.bias, rows, linear.weight.rows, out);
  }
  void normalize(Backend& backend, const Norm& norm, const float* x, float* out) {
    backend.layer_norm(x, norm.weight, norm.bias, static_cast<float>(config_.layer_norm_eps), patches_, hidden_, out);
  }
  void tap(Backend& backend, const std::string& name, const float* values, int64_t rows, int64_t dim) {
    if (!taps_) return;
    std::vector<float> host(static_cast<size_t>(rows * dim));
    backend.download(values, host.size() * sizeof(float), host.data());
    (*taps_)(name, host.data(), rows, dim);
  }

  const Siglip& tower_;
  const SiglipConfig& config_;
  const TapSink* taps_;
  TowerProducts products_;
  const int64_t patches_, hidden_;
  SelfAttention attention_;
  DeviceMemory memory_;
  float *x_, *normed_, *q_, *k_, *v_, *inner_;
};

void Siglip::encode(const float* pixels, float* out, const Adapter* adapter, const std::atomic<bool>* cancel,
                    const TapSink* taps) const {
  const auto check_cancel = [&] {
    if (cancel && cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
  };
  Pass pass(*this, model_->backend(), adapter, taps);
  {
    const std::vector<float> rows = patch_rows(pixels, config_);
    model_->run(config_.patches(), [&](Backend& backend) { pass.embed(backend, rows); });
  }
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    check_cancel();
    model_->run(config_.patches(), [&](Backend& backend) { pass.layer(backend, i); });
  }
  check_cancel();
  model_->run(config_.patches(), [&](Backend& backend) { pass.project(backend, out); });
}

}  // namespace gemlet::vision
