#include "vision/gemma4.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/tower_products.h"
#include "vision/patches.h"
#include "vision/self_attention.h"

namespace gemlet::vision {
namespace {

constexpr float kUnifiedEps = 1e-5f;

// Returns the rows and columns of squares of `size` pixels. Both sides must be multiples of `unit` pixels.
Grid grid_of(int64_t height, int64_t width, int64_t size, int64_t unit, int64_t positions) {
  if (height < 1 || width < 1 || height % unit != 0 || width % unit != 0) {
    fail(ErrorCode::kInvalidRequest, "an image of ", height, " x ", width,
         " pixels, expected sides that are multiples of ", unit);
  }
  const Grid grid = {height / size, width / size};
  if (grid.rows > positions || grid.cols > positions || grid.rows > kMostPatches / grid.cols) {
    fail(ErrorCode::kInvalidRequest, "an image of ", height, " x ", width, " pixels has ", grid.rows, " x ", grid.cols,
         " patches, expected at most ", positions, " in a row or a column, and at most ", kMostPatches,
         " in all; make the image smaller");
  }
  return grid;
}

int64_t floats_of(const Gemma4Config& config, int64_t patches) {
  const int64_t rows = std::min(kMlpRows, patches), queries = config.num_heads * config.head_dim;
  const int64_t keys = config.num_kv_heads * config.head_dim;
  const int64_t widest = std::max({config.hidden_size, queries, config.intermediate_size * rows / patches + 1});
  // residual, a norm's output and its clipped copy, q, k, v; cosines and sines; gate and up
  return patches * (config.hidden_size * 2 + widest + queries * 2 + keys * 2 + config.head_dim) +
         2 * rows * config.intermediate_size;
}

}  // namespace

void Gemma4Config::validate() const {
  check_range("vision: ", "patch_size", patch_size, 1, 256);
  check_range("vision: ", "hidden_size", hidden_size, 1, 1 << 16);
  check_range("vision: ", "intermediate_size", intermediate_size, 1, 1 << 18);
  check_range("vision: ", "num_hidden_layers", num_layers, 1, 512);
  check_range("vision: ", "num_attention_heads", num_heads, 1, 1024);
  check_range("vision: ", "num_key_value_heads", num_kv_heads, 1, num_heads);
  check_range("vision: ", "head_dim", head_dim, 4, kMaxHeadDim);
  if (head_dim % 4 != 0) fail(ErrorCode::kConfig, "vision: head_dim is ", head_dim, ", expected a multiple of 4");
  if (num_heads % num_kv_heads != 0) {
    fail(ErrorCode::kConfig, "vision: num_attention_heads is ", num_heads, ", expected a multiple of ", num_kv_heads);
  }
  check_range("vision: ", "pooling_kernel_size", pool, 1, 64);
  check_range("vision: ", "position_embedding_size", positions, 1, 1 << 20);
  check_range("vision: ", "rope_theta", rope_theta, 1e-3, 1e9);
  check_range("vision: ", "rms_norm_eps", rms_norm_eps, 1e-12, 0.1);
}

Gemma4Tower::Linear Gemma4Tower::linear(const std::string& name, int64_t rows, int64_t cols) const {
  const Tensors& tensors = model_->towers();
  const auto bound = [&](const char* end) {
    float value = 0;
    if (config_.clipped) model_->backend().download(tensors.floats(name + end, {}), sizeof value, &value);
    return value;
  };
  return {tensors.matrix(name, rows, cols), bound("_input_min"), bound("_input_max"), bound("_output_min"),
          bound("_output_max")};
}

Gemma4Tower::Gemma4Tower(std::shared_ptr<Model> model, const Gemma4Config& config)
    : model_(std::move(model)), config_(config) {
  config_.validate();
  model_->read_weights([&](const ModelWeights&) {
    const Tensors& tensors = model_->towers();
    const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size, dim = config_.head_dim;
    const int64_t queries = config_.num_heads * dim, keys = config_.num_kv_heads * dim;
    patch_embedding_ =
        tensors.matrix("vision.patch_embedding", hidden, kChannels * config_.patch_size * config_.patch_size);
    position_embedding_ = tensors.floats("vision.position_embedding", {2, config_.positions, hidden});
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const std::string at = "vision.layers." + std::to_string(i) + ".";
      const auto norm = [&](const char* name, int64_t size) { return tensors.floats(at + name, {size}); };
      layers_.push_back({norm("input_norm", hidden), norm("post_attention_norm", hidden), norm("pre_mlp_norm", hidden),
                         norm("post_mlp_norm", hidden), norm("q_norm", dim), norm("k_norm", dim),
                         linear(at + "q_proj", queries, hidden), linear(at + "k_proj", keys, hidden),
                         linear(at + "v_proj", keys, hidden), linear(at + "o_proj", hidden, queries),
                         linear(at + "gate_proj", inner, hidden), linear(at + "up_proj", inner, hidden),
                         linear(at + "down_proj", hidden, inner)});
    }
    if (config_.standardize) {
      Backend& backend = model_->backend();
      const size_t bytes = static_cast<size_t>(hidden) * sizeof(float);
      std::vector<float> bias(static_cast<size_t>(hidden)), scale(bias);
      std_scale_ = tensors.floats("vision.std_scale", {hidden});
      backend.download(tensors.floats("vision.std_bias", {hidden}), bytes, bias.data());
      backend.download(std_scale_, bytes, scale.data());
      for (size_t i = 0; i < bias.size(); ++i) bias[i] *= -scale[i];
      std_offset_ = backend.allocate(bytes);
      backend.upload(bias.data(), bytes, std_offset_.data());
    }
    projection_ = tensors.matrix("vision.projection", hidden_size(), hidden);
  });
}

int64_t Gemma4Tower::activation_bytes(const Gemma4Config& config, int64_t tokens, int64_t hidden_size, Format format,
                                      const Backend& backend) {
  const int64_t patches = tokens * config.pool * config.pool, rows = std::min(kMlpRows, patches);
  const int64_t pixels = patches * kChannels * config.patch_size * config.patch_size;
  const int64_t floats = floats_of(config, patches) + 3 * pixels + 2 * tokens * hidden_size;
  const int64_t prepared = std::max(backend.prepared_bytes({format, 16, config.hidden_size}, patches),
                                    backend.prepared_bytes({format, 16, config.intermediate_size}, rows));
  return floats * static_cast<int64_t>(sizeof(float)) + prepared +
         SelfAttention::bytes(backend, config.num_kv_heads, config.head_dim, format, patches);
}

// One pass of an image through the tower, with its own memory.
class Gemma4Tower::Pass {
 public:
  Pass(const Gemma4Tower& tower, Backend& backend, const Adapter* adapter, Grid grid)
      : tower_(tower),
        config_(tower.config_),
        products_(adapter),
        grid_(grid),
        patches_(grid.rows * grid.cols),
        hidden_(config_.hidden_size),
        eps_(static_cast<float>(config_.rms_norm_eps)),
        attention_(backend, shape_of(config_), tower.layers_[0].q.weight.format, patches_) {
    const int64_t queries = config_.num_heads * config_.head_dim, keys = config_.num_kv_heads * config_.head_dim;
    memory_ = backend.allocate(static_cast<size_t>(floats_of(config_, patches_)) * sizeof(float));
    float* next = memory_.as<float>();
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    const int64_t rows = std::min(kMlpRows, patches_);
    x_ = take(patches_ * hidden_);
    normed_ = take(patches_ * hidden_);
    gate_ = take(rows * config_.intermediate_size);
    up_ = take(rows * config_.intermediate_size);
    q_ = take(patches_ * queries);
    attended_ = take(patches_ * queries);
    k_ = take(patches_ * keys);
    v_ = take(patches_ * keys);
    cosines_ = take(patches_ * config_.head_dim / 2);
    sines_ = take(patches_ * config_.head_dim / 2);
    clipped_ = next;  // the rest, which is at least as large as the widest input
  }

  void embed(Backend& backend, const std::vector<float>& pixels) {
    DeviceMemory memory = backend.allocate(pixels.size() * sizeof(float));
    backend.upload(pixels.data(), pixels.size() * sizeof(float), memory.data());
    const Product product = {memory.as<float>(), patches_, &tower_.patch_embedding_, x_};
    products_.multiply(backend, product);
    std::vector<int32_t> columns, rows;
    for (int64_t i = 0; i < patches_; ++i) {
      columns.push_back(static_cast<int32_t>(i % grid_.cols));
      rows.push_back(static_cast<int32_t>(i / grid_.cols));
    }
    backend.gather(tower_.position_embedding_, columns, hidden_, normed_);
    backend.add_branch(normed_, nullptr, 0, patches_, hidden_, x_);
    backend.gather(tower_.position_embedding_ + config_.positions * hidden_, rows, hidden_, normed_);
    backend.add_branch(normed_, nullptr, 0, patches_, hidden_, x_);
    upload_angles(backend);
  }

  void layer(Backend& backend, const Layer& layer) {
    backend.rms_norm(x_, layer.input_norm, eps_, patches_, hidden_, normed_);
    multiply(backend, normed_, patches_, layer.q, q_);
    multiply(backend, normed_, patches_, layer.k, k_);
    multiply(backend, normed_, patches_, layer.v, v_);
    attention_.run(backend, q_, k_, v_, {layer.q_norm, layer.k_norm, true, eps_}, cosines_, sines_, attended_);
    multiply(backend, attended_, patches_, layer.o, normed_);
    backend.add_branch(normed_, layer.post_attention_norm, eps_, patches_, hidden_, x_);
    backend.rms_norm(x_, layer.pre_mlp_norm, eps_, patches_, hidden_, normed_);
    for (int64_t row = 0; row < patches_; row += kMlpRows) {
      const int64_t rows = std::min(kMlpRows, patches_ - row), inner = config_.intermediate_size;
      float* const part = normed_ + row * hidden_;
      multiply(backend, part, rows, layer.gate, gate_);
      multiply(backend, part, rows, layer.up, up_);
      backend.gelu_mul(gate_, inner, up_, inner, rows, inner, gate_);
      multiply(backend, gate_, rows, layer.down, part);
    }
    backend.add_branch(normed_, layer.post_mlp_norm, eps_, patches_, hidden_, x_);
  }

  void project(Backend& backend, float* out) {
    const int64_t tokens = patches_ / (config_.pool * config_.pool), dim = tower_.hidden_size();
    backend.mean_pool(x_, grid_.rows, grid_.cols, hidden_, config_.pool, normed_);
    backend.scale(std::sqrt(static_cast<float>(hidden_)), tokens * hidden_, normed_);
    if (config_.standardize) {
      backend.mul_rows(normed_, tower_.std_scale_, tokens, hidden_, normed_);
      backend.add_bias(reinterpret_cast<const float*>(tower_.std_offset_.data()), tokens, hidden_, normed_);
    }
    backend.rms_norm(normed_, nullptr, eps_, tokens, hidden_, normed_);
    const size_t bytes = static_cast<size_t>(tokens * dim) * sizeof(float);
    DeviceMemory soft = backend.allocate(bytes);
    const Product product = {normed_, tokens, &tower_.projection_, soft.as<float>()};
    products_.multiply(backend, product);
    backend.download(soft.data(), bytes, out);
  }

 private:
  static AttentionShape shape_of(const Gemma4Config& config) {
    AttentionShape shape = {};
    shape.num_heads = config.num_heads;
    shape.num_kv_heads = config.num_kv_heads;
    shape.head_dim = config.head_dim;
    shape.query_scale = 1.0f;
    shape.rope_parts = 2;
    return shape;
  }

  void multiply(Backend& backend, const float* x, int64_t rows, const Linear& linear, float* out) {
    const Matrix& weight = linear.weight;
    if (config_.clipped) {
      backend.clamp(x, linear.input_min, linear.input_max, rows * weight.cols, clipped_);
      x = clipped_;
    }
    const Product product = {x, rows, &weight, out};
    products_.multiply(backend, product);
    if (config_.clipped) backend.clamp(out, linear.output_min, linear.output_max, rows * weight.rows, out);
  }

  // The first half of a head is rotated by the patch's column, the second half by the patch's row.
  void upload_angles(Backend& backend) {
    const int64_t half = config_.head_dim / 2, lanes = half / 2;
    std::vector<float> frequencies, cosines, sines;
    for (int64_t i = 0; i < lanes; ++i) {
      const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(half);
      frequencies.push_back(static_cast<float>(1.0 / std::pow(config_.rope_theta, exponent)));
    }
    for (int64_t patch = 0; patch < patches_; ++patch) {
      for (const int64_t position : {patch % grid_.cols, patch / grid_.cols}) {
        for (const float frequency : frequencies) {
          const float angle = static_cast<float>(position) * frequency;
          cosines.push_back(std::cos(angle));
          sines.push_back(std::sin(angle));
        }
      }
    }
    backend.upload(cosines.data(), cosines.size() * sizeof(float), cosines_);
    backend.upload(sines.data(), sines.size() * sizeof(float), sines_);
  }

  const Gemma4Tower& tower_;
  const Gemma4Config& config_;
  TowerProducts products_;
  const Grid grid_;
  const int64_t patches_, hidden_;
  const float eps_;
  SelfAttention attention_;
  DeviceMemory memory_;
  float *x_, *normed_, *q_, *attended_, *k_, *v_, *gate_, *up_, *cosines_, *sines_, *clipped_;
};

void Gemma4Tower::encode(const float* pixels, int64_t height, int64_t width, float* out, const Adapter* adapter,
                         const std::atomic<bool>* cancel) const {
  const Grid grid = grid_of(height, width, config_.patch_size, token_pixels(), config_.positions);
  const int64_t patches = grid.rows * grid.cols;
  const auto check_cancel = [&] {
    if (cancel && cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
  };
  Pass pass(*this, model_->backend(), adapter, grid);
  {
    std::vector<float> rows = flat_patches(pixels, grid, config_.patch_size);
    for (float& value : rows) value = 2.0f * (value - 0.5f);
    model_->run(patches, [&](Backend& backend) { pass.embed(backend, rows); });
  }
  for (const Layer& layer : layers_) {
    check_cancel();
    model_->run(patches, [&](Backend& backend) { pass.layer(backend, layer); });
  }
  check_cancel();
  model_->run(patches, [&](Backend& backend) { pass.project(backend, out); });
}

void UnifiedConfig::validate() const {
  check_range("vision: ", "model_patch_size", tile_size, 1, 1024);
  check_range("vision: ", "mm_embed_dim", hidden_size, 1, 1 << 16);
  check_range("vision: ", "mm_posemb_size", positions, 1, 1 << 20);
  check_range("vision: ", "rms_norm_eps", rms_norm_eps, 1e-12, 0.1);
}

UnifiedEmbedder::UnifiedEmbedder(std::shared_ptr<Model> model, const UnifiedConfig& config)
    : model_(std::move(model)), config_(config) {
  config_.validate();
  model_->read_weights([&](const ModelWeights&) {
    const Tensors& tensors = model_->towers();
    const int64_t hidden = config_.hidden_size, pixels = kChannels * config_.tile_size * config_.tile_size;
    const auto norm = [&](const std::string& name, int64_t size) {
      return Norm{tensors.floats(name, {size}), tensors.floats(name + "_bias", {size})};
    };
    norm1_ = norm("vision.patch_norm1", pixels);
    norm2_ = norm("vision.patch_norm2", hidden);
    position_norm_ = norm("vision.position_norm", hidden);
    dense_ = tensors.matrix("vision.patch_dense", hidden, pixels);
    dense_bias_ = tensors.floats("vision.patch_dense_bias", {hidden});
    position_embedding_ = tensors.floats("vision.position_embedding", {config_.positions, 2, hidden});
    projection_ = tensors.matrix("vision.projection", hidden_size(), hidden);
  });
}

void UnifiedEmbedder::encode(const float* pixels, int64_t height, int64_t width, float* out, const Adapter* adapter,
                             const std::atomic<bool>* cancel) const {
  TowerProducts products(adapter);
  const Grid grid = grid_of(height, width, config_.tile_size, config_.tile_size, config_.positions);
  if (cancel && cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
  const int64_t tokens = grid.rows * grid.cols, hidden = config_.hidden_size, dim = hidden_size();
  const int64_t values = kChannels * config_.tile_size * config_.tile_size;
  const std::vector<float> tiles = flat_patches(pixels, grid, config_.tile_size);
  std::vector<int32_t> columns, rows;
  for (int64_t i = 0; i < tokens; ++i) {
    columns.push_back(static_cast<int32_t>(2 * (i % grid.cols)));
    rows.push_back(static_cast<int32_t>(2 * (i / grid.cols) + 1));
  }
  model_->run(tokens, [&](Backend& backend) {
    const auto floats = [](int64_t count) { return static_cast<size_t>(count) * sizeof(float); };
    DeviceMemory memory = backend.allocate(floats(tokens * (values + 2 * hidden + dim)));
    float* const x = memory.as<float>();
    float* const h = x + tokens * values;
    float* const position = h + tokens * hidden;
    float* const soft = position + tokens * hidden;
    backend.upload(tiles.data(), floats(tokens * values), x);
    backend.layer_norm(x, norm1_.weight, norm1_.bias, kUnifiedEps, tokens, values, x);
    const Product embed = {x, tokens, &dense_, h};
    products.multiply(backend, embed);
    backend.add_bias(dense_bias_, tokens, hidden, h);
    backend.layer_norm(h, norm2_.weight, norm2_.bias, kUnifiedEps, tokens, hidden, h);
    for (const std::vector<int32_t>* places : {&columns, &rows}) {
      backend.gather(position_embedding_, *places, hidden, position);
      backend.add_branch(position, nullptr, 0, tokens, hidden, h);
    }
    backend.layer_norm(h, position_norm_.weight, position_norm_.bias, kUnifiedEps, tokens, hidden, h);
    backend.rms_norm(h, nullptr, static_cast<float>(config_.rms_norm_eps), tokens, hidden, h);
    const Product project = {h, tokens, &projection_, soft};
    products.multiply(backend, project);
    backend.download(soft, floats(tokens * dim), out);
  });
}

}  // namespace gemlet::vision
