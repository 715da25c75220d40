#include "audio/conformer.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "model/tower_products.h"

namespace gemlet::audio {
namespace {

constexpr int64_t kKernel = 3, kStride = 2;  // for both convolutions
constexpr int64_t kWide = 4;                 // the hidden layer of an MLP is this many times as wide as the residual
constexpr int64_t kPatchFloats = 1 << 20;    // the most floats of a convolution's input that are in memory at a time
constexpr float kNormEps = 1e-6f;            // used by the norms that do not use rms_norm_eps

int64_t half(int64_t count) { return (count + 1) / 2; }

void check_size(const char* field, int64_t value, int64_t high) { check_range("audio: ", field, value, 1, high); }

// The first or the second convolution, with the grid that it reads.
Convolution convolution(const ConformerConfig& config, int index, int64_t frames) {
  const bool first = index == 0;
  return {.rows = first ? frames : half(frames),
          .cols = first ? config.bins : half(config.bins),
          .channels = first ? 1 : config.first_channels,
          .kernel = kKernel,
          .stride = kStride,
          .top = config.family == Family::kGemma4 ? 1 : 0,  // Gemma 3n has all of its padding at the end
          .left = 1};
}

int64_t out_channels(const ConformerConfig& config, int index) {
  return index == 0 ? config.first_channels : config.second_channels;
}

int64_t out_floats(const ConformerConfig& config, int index, int64_t frames) {
  const Convolution c = convolution(config, index, frames);
  return c.out_rows() * c.out_cols() * out_channels(config, index);
}

int64_t patch_row_floats(const Convolution& c) { return c.out_cols() * c.channels * c.kernel * c.kernel; }

// The number of rows of a convolution's output that are computed at a time.
int64_t patch_rows(const Convolution& c) {
  return std::clamp<int64_t>(kPatchFloats / patch_row_floats(c), 1, std::max<int64_t>(1, c.out_rows()));
}

int64_t subsampling_floats(const ConformerConfig& config, int64_t frames) {
  int64_t floats = frames * config.bins;
  for (int i = 0; i < 2; ++i) {
    const Convolution c = convolution(config, i, frames);
    floats += out_floats(config, i, frames) + patch_rows(c) * patch_row_floats(c);
  }
  return floats;
}

// The floats that the blocks need for a row: the residual, five more buffers, the hidden layer of an MLP, and a clamped
// input.
int64_t row_floats(const ConformerConfig& config) {
  return (6 + kWide + (config.clipped ? kWide : 0)) * config.hidden_size;
}

}  // namespace

void ConformerConfig::validate() const {
  check_size("input_feat_size", bins, 1024);
  check_size("first convolution's channels", first_channels, 4096);
  check_size("second convolution's channels", second_channels, 4096);
  check_size("hidden_size", hidden_size, 1 << 15);
  check_size("num_hidden_layers", num_layers, 512);
  check_size("num_attention_heads", num_heads, hidden_size);
  if (hidden_size % num_heads != 0 || hidden_size % 2 != 0) {
    fail(ErrorCode::kConfig, "audio: hidden_size is ", hidden_size, ", expected an even multiple of the ", num_heads,
         " heads");
  }
  check_size("conv_kernel_size", conv_taps, 256);
  check_size("attention_context_left", keys, 256);
  check_size("output_proj_dims", output_size, 1 << 15);
  check_size("conf_reduction_factor", reduction, 64);
  check_range("audio: ", "attention_logit_cap", logit_cap, 1e-3, 1e6);
  check_range("audio: ", "residual_weight", residual_weight, 0.0, 1e3);
  check_range("audio: ", "rms_norm_eps", rms_norm_eps, 0.0, 1.0);
  check_range("audio: ", "sscp_conv_group_norm_eps", group_norm_eps, 0.0, 1.0);
}

int64_t ConformerConfig::block_rows(int64_t frames, int64_t valid) const {
  if (family == Family::kGemma4) return half(half(valid));
  // A token counts if its first frame does. A first frame beyond the end counts as the last frame.
  const int64_t rows = half(half(frames));
  return valid >= frames ? rows : std::min(rows, (valid + 3) / 4);
}

int64_t ConformerConfig::tokens(int64_t frames, int64_t valid) const {
  return (block_rows(frames, valid) + reduction - 1) / reduction;
}

const float* Conformer::keep(Backend& backend, const std::vector<float>& values) {
  kept_.push_back(backend.allocate(values.size() * sizeof(float)));
  backend.upload(values.data(), values.size() * sizeof(float), kept_.back().data());
  return kept_.back().as<float>();
}

Conformer::Linear Conformer::linear(Backend& backend, const std::string& name, int64_t rows, int64_t cols) const {
  const float infinity = std::numeric_limits<float>::infinity();
  Linear result = {model_->towers().matrix(name, rows, cols), -infinity, infinity, -infinity, infinity};
  if (!config_.clipped) return result;
  const auto read = [&](const char* bound) {
    float value = 0;
    backend.download(model_->towers().floats(name + bound, {}), sizeof value, &value);
    return value;
  };
  result.input_low = read("_input_min");
  result.input_high = read("_input_max");
  result.output_low = read("_output_min");
  result.output_high = read("_output_max");
  return result;
}

Conformer::FeedForward Conformer::feed_forward(Backend& backend, const std::string& at) const {
  const int64_t hidden = config_.hidden_size;
  const Tensors& tensors = model_->towers();
  return {tensors.floats(at + "_pre_norm", {hidden}), linear(backend, at + "_up", kWide * hidden, hidden),
          linear(backend, at + "_down", hidden, kWide * hidden), tensors.floats(at + "_post_norm", {hidden})};
}

Conformer::Layer Conformer::layer(Backend& backend, const std::string& at) {
  const Tensors& tensors = model_->towers();
  const int64_t hidden = config_.hidden_size, taps = config_.conv_taps, head_dim = config_.head_dim();
  const auto norm = [&](const char* name) { return tensors.floats(at + name, {hidden}); };
  Layer result = {};
  result.start = feed_forward(backend, at + "ffw_start");
  result.end = feed_forward(backend, at + "ffw_end");
  result.attention_norm = norm("attention_norm");
  result.q = linear(backend, at + "q_proj", hidden, hidden);
  result.k = linear(backend, at + "k_proj", hidden, hidden);
  result.v = linear(backend, at + "v_proj", hidden, hidden);
  result.out = linear(backend, at + "o_proj", hidden, hidden);
  result.relative = tensors.matrix(at + "relative_proj", hidden, hidden);
  result.attention_post_norm = norm("attention_post_norm");
  result.conv_pre_norm = norm("conv_pre_norm");
  result.conv_start = linear(backend, at + "conv_start", 2 * hidden, hidden);
  result.conv_end = linear(backend, at + "conv_end", hidden, hidden);
  result.conv_norm = norm("conv_norm");
  result.norm = norm("norm");

  std::vector<float> scales(static_cast<size_t>(head_dim)), tiled;
  backend.download(tensors.floats(at + "per_dim_scale", {head_dim}), scales.size() * sizeof(float), scales.data());
  for (int64_t i = 0; i < hidden; ++i) {
    const double value = static_cast<double>(scales[static_cast<size_t>(i % head_dim)]);
    const double softplus = value > 30 ? value : std::log1p(std::exp(value));
    tiled.push_back(static_cast<float>(softplus / std::sqrt(static_cast<double>(head_dim)) / std::log(2.0)));
  }
  result.query_scale = keep(backend, tiled);

  std::vector<float> weights(static_cast<size_t>(hidden * taps)), transposed(weights);
  backend.download(tensors.floats(at + "conv_depthwise", {hidden, 1, taps}), weights.size() * sizeof(float),
                   weights.data());
  for (int64_t i = 0; i < hidden * taps; ++i) {
    transposed[static_cast<size_t>(i % taps * hidden + i / taps)] = weights[static_cast<size_t>(i)];
  }
  result.conv_weight = keep(backend, transposed);
  return result;
}

Conformer::Conformer(std::shared_ptr<Model> model, const ConformerConfig& config)
    : model_(std::move(model)), config_(config) {
  config_.validate();
  model_->run(1, [&](Backend& backend) {
    const Tensors& tensors = model_->towers();
    const int64_t hidden = config_.hidden_size;
    for (int i = 0; i < 2; ++i) {
      const std::string name = "audio.conv." + std::to_string(i);
      const Convolution c = convolution(config_, i, 1);
      const int64_t channels = out_channels(config_, i);
      convolutions_[i] = tensors.matrix(name, channels, c.channels * c.kernel * c.kernel);
      conv_norms_[i] = tensors.floats(name + "_norm", {channels});
    }
    input_projection_ = tensors.matrix("audio.input_proj", hidden, config_.conv_bins() * config_.second_channels);
    std::vector<float> table;
    const double step = std::log(1e4) / static_cast<double>(std::max<int64_t>(hidden / 2 - 1, 1));
    for (int64_t distance = 0; distance < config_.keys; ++distance) {
      for (int64_t i = 0; i < hidden; ++i) {
        const double angle = static_cast<double>(distance) * std::exp(-static_cast<double>(i % (hidden / 2)) * step);
        table.push_back(static_cast<float>(i < hidden / 2 ? std::sin(angle) : std::cos(angle)));
      }
    }
    timescales_ = keep(backend, table);
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      layers_.push_back(layer(backend, "audio.layers." + std::to_string(i) + "."));
    }
    if (config_.family == Family::kGemma4) {
      output_projection_ = tensors.matrix("audio.output_proj", config_.output_size, hidden);
      output_bias_ = tensors.floats("audio.output_bias", {config_.output_size});
    } else {
      soft_norm_ = tensors.floats("audio.soft_norm", {hidden});
    }
    projection_ = tensors.matrix("audio.projection", model_->config().hidden_size, config_.output_size);
  });
}

int64_t Conformer::activation_bytes(const ConformerConfig& config, int64_t frames, int64_t hidden_size, Format format,
                                    const Backend& backend) {
  const int64_t rows = half(half(frames)), hidden = config.hidden_size;
  const int64_t blocks = rows * (row_floats(config) + config.output_size + hidden_size) + config.keys * hidden * 2;
  const int64_t prepared = std::max({backend.prepared_bytes({format, hidden, kWide * hidden}, rows),
                                     backend.prepared_bytes({format, kWide * hidden, hidden}, rows)});
  const auto bytes = static_cast<int64_t>(sizeof(float));
  return std::max(subsampling_floats(config, frames) * bytes, blocks * bytes + prepared);
}

// One pass of a sound through the encoder, with its own memory.
class Conformer::Pass {
 public:
  Pass(const Conformer& tower, int64_t frames, int64_t valid, const Adapter* adapter, const TapSink* taps)
      : tower_(tower),
        config_(tower.config_),
        taps_(taps),
        products_(adapter),
        // In Gemma 4, frames that do not count are zeros, like the padding. In Gemma 3n the convolutions see them.
        frames_(config_.family == Family::kGemma4 ? valid : frames),
        rows_(config_.block_rows(frames, valid)),
        hidden_(config_.hidden_size) {}

  void subsample(Backend& backend, const float* features) {
    allocate(backend);
    DeviceMemory memory = backend.allocate(bytes(subsampling_floats(config_, frames_)));
    float* in = memory.as<float>();
    backend.upload(features, bytes(frames_ * config_.bins), in);
    int64_t in_floats = frames_ * config_.bins;
    for (int i = 0; i < 2; ++i) {
      const Convolution c = convolution(config_, i, frames_);
      const int64_t channels = out_channels(config_, i), cells = c.out_cols();
      float* const out = in + in_floats;
      in_floats = out_floats(config_, i, frames_);
      float* const patches = out + in_floats;
      for (int64_t row = 0; row < c.out_rows(); row += patch_rows(c)) {
        const int64_t count = std::min(patch_rows(c), c.out_rows() - row);
        backend.unfold(c, in, row, count, patches);
        const Product product = {patches, count * cells, &tower_.convolutions_[i], out + row * cells * channels};
        products_.multiply(backend, product);
      }
      if (config_.family == Family::kGemma4) {
        backend.norm_relu(tower_.conv_norms_[i], eps(), c.out_rows() * cells, channels, out);
      } else {
        backend.cumulative_norm_relu(tower_.conv_norms_[i], static_cast<float>(config_.group_norm_eps), c.out_rows(),
                                     cells, channels, out);
      }
      in = out;
    }
    const Product product = {in, rows_, &tower_.input_projection_, x_};
    products_.multiply(backend, product);
    tap(backend, "subsample", x_, rows_, hidden_);
  }

  void layer(Backend& backend, int64_t index) {
    const Layer& layer = tower_.layers_[static_cast<size_t>(index)];
    feed_forward(backend, layer.start);
    attend(backend, layer);
    convolve(backend, layer);
    feed_forward(backend, layer.end);
    backend.rms_norm(x_, layer.norm, kNormEps, rows_, hidden_, x_);
    if (taps_) tap(backend, "layers." + std::to_string(index), x_, rows_, hidden_);
  }

  void project(Backend& backend, float* out) {
    const int64_t dim = tower_.hidden_size();
    const int64_t tokens = (rows_ + config_.reduction - 1) / config_.reduction, size = config_.output_size;
    DeviceMemory memory = backend.allocate(bytes(tokens * (size + dim)));
    float* const encoded = memory.as<float>();
    float* const soft = encoded + tokens * size;
    if (config_.family == Family::kGemma4) {
      const Product product = {x_, rows_, &tower_.output_projection_, encoded};
      products_.multiply(backend, product);
      backend.add_bias(tower_.output_bias_, rows_, size, encoded);
    } else {
      std::vector<int32_t> kept;
      for (int64_t row = 0; row < rows_; row += config_.reduction) kept.push_back(static_cast<int32_t>(row));
      backend.gather(x_, kept, size, encoded);
    }
    tap(backend, "encoded", encoded, tokens, size);
    backend.rms_norm(encoded, tower_.soft_norm_, eps(), tokens, size, encoded);
    const Product product = {encoded, tokens, &tower_.projection_, soft};
    products_.multiply(backend, product);
    if (config_.family == Family::kGemma3n) backend.rms_norm(soft, nullptr, eps(), tokens, dim, soft);
    backend.download(soft, bytes(tokens * dim), out);
  }

 private:
  static size_t bytes(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }
  float eps() const { return static_cast<float>(config_.rms_norm_eps); }

  void allocate(Backend& backend) {
    const int64_t floats = rows_ * hidden_;
    memory_ = backend.allocate(bytes(rows_ * row_floats(config_) + config_.keys * hidden_));
    x_ = memory_.as<float>();
    h_ = x_ + floats;
    q_ = h_ + floats;
    k_ = q_ + floats;
    v_ = k_ + floats;
    mixed_ = v_ + floats;
    wide_ = mixed_ + floats;
    clamped_ = wide_ + kWide * floats;
    relative_ = memory_.as<float>() + rows_ * row_floats(config_);
  }

  static bool same_input(const Linear& a, const Linear& b) {
    return a.input_low == b.input_low && a.input_high == b.input_high;
  }

  // Computes several products of x. Products that clamp x in the same way go into one call of the backend.
  void multiply(Backend& backend, const float* x, std::initializer_list<std::pair<const Linear*, float*>> outputs) {
    std::vector<Product> products;
    const Linear* last = nullptr;
    const float* input = x;
    const auto flush = [&] {
      if (!products.empty()) products_.multiply(backend, products);
      products.clear();
    };
    for (const auto& [linear, out] : outputs) {
      if (config_.clipped && (!last || !same_input(*last, *linear))) {
        flush();
        backend.clamp(x, linear->input_low, linear->input_high, rows_ * linear->weight.cols, clamped_);
        input = clamped_;
      }
      products.push_back({input, rows_, &linear->weight, out});
      last = linear;
    }
    flush();
    if (!config_.clipped) return;
    for (const auto& [linear, out] : outputs) {
      backend.clamp(out, linear->output_low, linear->output_high, rows_ * linear->weight.rows, out);
    }
  }

  void feed_forward(Backend& backend, const FeedForward& part) {
    backend.rms_norm(x_, part.pre_norm, kNormEps, rows_, hidden_, h_);
    multiply(backend, h_, {{&part.up, wide_}});
    backend.silu(rows_ * kWide * hidden_, wide_);
    multiply(backend, wide_, {{&part.down, h_}});
    backend.rms_norm(h_, part.post_norm, kNormEps, rows_, hidden_, h_);
    backend.add_scaled(h_, static_cast<float>(config_.residual_weight), rows_ * hidden_, x_);
  }

  void attend(Backend& backend, const Layer& layer) {
    backend.rms_norm(x_, layer.attention_norm, kNormEps, rows_, hidden_, h_);
    multiply(backend, h_, {{&layer.q, q_}, {&layer.k, k_}, {&layer.v, v_}});
    backend.mul_rows(q_, layer.query_scale, rows_, hidden_, q_);
    if (config_.family == Family::kGemma4) {
      backend.scale(static_cast<float>(std::log(1 + std::exp(1.0)) / std::log(2.0)), rows_ * hidden_, k_);
    }
    const Product product = {tower_.timescales_, config_.keys, &layer.relative, relative_};
    products_.multiply(backend, product);
    const LocalAttention shape = {config_.num_heads, config_.head_dim(), config_.keys,
                                  static_cast<float>(config_.logit_cap)};
    backend.local_attention(shape, q_, k_, v_, relative_, rows_, mixed_);
    multiply(backend, mixed_, {{&layer.out, h_}});
    backend.add_branch(h_, layer.attention_post_norm, kNormEps, rows_, hidden_, x_);
  }

  void convolve(Backend& backend, const Layer& layer) {
    backend.rms_norm(x_, layer.conv_pre_norm, eps(), rows_, hidden_, h_);
    multiply(backend, h_, {{&layer.conv_start, wide_}});
    backend.sigmoid_mul(wide_, rows_, hidden_, h_);
    backend.causal_convolution(h_, layer.conv_weight, config_.conv_taps, rows_, hidden_, q_);
    backend.rms_norm(q_, layer.conv_norm, eps(), rows_, hidden_, q_);
    backend.silu(rows_ * hidden_, q_);
    multiply(backend, q_, {{&layer.conv_end, h_}});
    backend.add_branch(h_, nullptr, 0, rows_, hidden_, x_);
  }

  void tap(Backend& backend, const std::string& name, const float* values, int64_t rows, int64_t dim) {
    if (!taps_) return;
    std::vector<float> host(static_cast<size_t>(rows * dim));
    backend.download(values, bytes(rows * dim), host.data());
    (*taps_)(name, host.data(), rows, dim);
  }

  const Conformer& tower_;
  const ConformerConfig& config_;
  const TapSink* taps_;
  TowerProducts products_;
  const int64_t frames_, rows_, hidden_;
  DeviceMemory memory_;
  float *x_, *h_, *q_, *k_, *v_, *mixed_, *wide_, *clamped_, *relative_;
};

void Conformer::encode(const float* features, int64_t frames, int64_t valid, float* out, const Adapter* adapter,
                       const std::atomic<bool>* cancel, const TapSink* taps) const {
  if (frames < 1 || frames > kMostFrames || valid < 1 || valid > frames) {
    fail(ErrorCode::kInvalidRequest, "sound: ", frames, " frames, of which ", valid, " count, expected 1 to ",
         kMostFrames, "; cut a long sound into pieces");
  }
  const int64_t rows = config_.block_rows(frames, valid);
  Pass pass(*this, frames, valid, adapter, taps);
  const auto step = [&](const auto& work) {
    if (cancel && cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
    model_->run(rows, work);
  };
  step([&](Backend& backend) { pass.subsample(backend, features); });
  for (int64_t i = 0; i < config_.num_layers; ++i) step([&](Backend& backend) { pass.layer(backend, i); });
  step([&](Backend& backend) { pass.project(backend, out); });
}

}  // namespace gemlet::audio
