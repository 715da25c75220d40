#include "vision/mobilenet.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/tower_products.h"
#include "vision/self_attention.h"

namespace gemlet::vision {
namespace {

constexpr float kEps = 1e-6f;  // used by all norms but the embedder's
using Kind = MobileNetBlock::Kind;

}  // namespace

const float* MobileNet::keep(Backend& backend, const std::vector<float>& values) {
  kept_.push_back(backend.allocate(values.size() * sizeof(float)));
  backend.upload(values.data(), values.size() * sizeof(float), kept_.back().data());
  return kept_.back().as<float>();
}

std::vector<float> MobileNet::read(Backend& backend, const std::string& name, const std::vector<int64_t>& shape) const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  std::vector<float> values(static_cast<size_t>(count));
  backend.download(model_->towers().floats(name, shape), values.size() * sizeof(float), values.data());
  return values;
}

// Returns the weights in another order, in which the channels of a tap are neighbours.
const float* MobileNet::depthwise(Backend& backend, const std::string& name, int64_t channels, int64_t kernel) {
  const std::vector<float> weights = read(backend, name, {channels, 1, kernel, kernel});
  std::vector<float> transposed(weights.size());
  const int64_t taps = kernel * kernel;
  for (int64_t i = 0; i < channels * taps; ++i) {
    transposed[static_cast<size_t>(i % taps * channels + i / taps)] = weights[static_cast<size_t>(i)];
  }
  return keep(backend, transposed);
}

MobileNet::Block MobileNet::block(Backend& backend, const std::string& at, const MobileNetBlock& shape) {
  const Tensors& tensors = model_->towers();
  const int64_t in = shape.in_channels, out = shape.out_channels, inner = shape.inner;
  const auto norm = [&](const char* name, int64_t size) { return tensors.floats(at + name, {size}); };
  Block result;
  if (shape.attends()) {
    const int64_t heads = shape.num_heads * shape.head_dim;
    result.norm = norm("norm", in);
    result.query = tensors.matrix(at + "query", heads, in);
    result.key = tensors.matrix(at + "key", shape.head_dim, in);
    result.value = tensors.matrix(at + "value", shape.head_dim, in);
    result.projection = tensors.matrix(at + "output", out, heads);
    result.scale = norm("scale", out);
    if (shape.middle_kernel > 0) {
      result.key_down = depthwise(backend, at + "key_down", in, shape.middle_kernel);
      result.key_norm = norm("key_norm", in);
      result.value_down = depthwise(backend, at + "value_down", in, shape.middle_kernel);
      result.value_norm = norm("value_norm", in);
    }
    return result;
  }
  const bool edge = shape.kind == Kind::kEdge;
  result.expansion = tensors.matrix(at + "expansion", inner, edge ? in * shape.start_kernel * shape.start_kernel : in);
  result.expansion_norm = norm("expansion_norm", inner);
  result.projection = tensors.matrix(at + "projection", out, inner);
  if (edge) {
    result.projection_norm = norm("projection_norm", out);
    return result;
  }
  if (shape.start_kernel > 0) {
    result.start = depthwise(backend, at + "start", in, shape.start_kernel);
    result.start_norm = norm("start_norm", in);
  }
  if (shape.middle_kernel > 0) {
    result.middle = depthwise(backend, at + "middle", inner, shape.middle_kernel);
    result.middle_norm = norm("middle_norm", inner);
  }
  std::vector<float> weights = read(backend, at + "projection_norm", {out});
  const std::vector<float> scale = read(backend, at + "scale", {out});
  for (size_t i = 0; i < weights.size(); ++i) weights[i] *= scale[i];
  result.projection_norm = keep(backend, weights);
  return result;
}

MobileNet::MobileNet(std::shared_ptr<Model> model, MobileNetConfig config)
    : model_(std::move(model)), config_(std::move(config)) {
  config_.validate();
  model_->run(1, [&](Backend& backend) {
    const Tensors& tensors = model_->towers();
    const int64_t stem = config_.stem_channels, hidden = config_.hidden_size, inner = config_.fused_inner;
    stem_ = tensors.matrix("vision.stem", stem, kChannels * kStemKernel * kStemKernel);
    stem_bias_ = tensors.floats("vision.stem_bias", {stem});
    stem_norm_ = tensors.floats("vision.stem_norm", {stem});
    for (size_t i = 0; i < config_.stages.size(); ++i) {
      stages_.emplace_back();
      for (size_t j = 0; j < config_.stages[i].size(); ++j) {
        const std::string at = "vision.blocks." + std::to_string(i) + "." + std::to_string(j) + ".";
        stages_.back().push_back(block(backend, at, config_.stages[i][j]));
      }
    }
    const auto& stages = config_.stages;
    const int64_t joined = stages[stages.size() - 2].back().out_channels + stages.back().back().out_channels;
    fused_expansion_ = tensors.matrix("vision.fusion.expansion", inner, joined);
    fused_expansion_norm_ = tensors.floats("vision.fusion.expansion_norm", {inner});
    fused_projection_ = tensors.matrix("vision.fusion.projection", hidden, inner);
    fused_projection_norm_ = tensors.floats("vision.fusion.projection_norm", {hidden});
    output_norm_ = tensors.floats("vision.fusion.norm", {hidden});
    soft_norm_ = tensors.floats("vision.soft_norm", {hidden});
    projection_ = tensors.matrix("vision.projection", hidden_size(), hidden);
  });
}

int64_t MobileNet::activation_bytes(const MobileNetConfig& config, int64_t hidden_size, Format format,
                                    const Backend& backend) {
  const MobileNetPlan plan(config);
  const int64_t pixels = config.height * config.width * kChannels;  // they also lie on the host
  const int64_t floats = plan.floats() + 3 * pixels + 2 * config.tokens() * hidden_size;
  int64_t prepared = 0, kv = 0;
  const auto product = [&](int64_t cols, int64_t rows) {
    prepared = std::max(prepared, backend.prepared_bytes({format, 16, cols}, rows));
  };
  for (const MobileNetStep& step : plan.steps) {
    if (!step.block) continue;
    const MobileNetBlock& block = *step.block;
    const int64_t some = rows_at_once(step.out) * step.out.cols;
    if (block.attends()) {
      product(block.in_channels, places(step.in));
      product(block.num_heads * block.head_dim, places(step.in));
      kv = std::max(kv,
                    SelfAttention::bytes(backend, 1, block.head_dim, format, places(reduced(step.in, block.stride))));
    } else {
      const int64_t taps = block.kind == Kind::kEdge ? block.start_kernel * block.start_kernel : 1;
      product(block.in_channels * taps, some * block.stride * block.stride + block.middle_kernel * step.in.cols);
      product(block.inner, some);
    }
  }
  product(config.fused_inner, rows_at_once(plan.kept_grid) * plan.kept_grid.cols);
  return floats * static_cast<int64_t>(sizeof(float)) + prepared + kv;
}

// One pass of an image through the tower, with its own memory.
class MobileNet::Pass {
 public:
  Pass(const MobileNet& tower, Backend& backend, const Adapter* adapter, const TapSink* taps)
      : tower_(tower), config_(tower.config_), taps_(taps), products_(adapter), plan_(config_) {
    memory_ = backend.allocate(static_cast<size_t>(plan_.floats()) * sizeof(float));
    float* next = memory_.as<float>();
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    for (size_t i = 0; i < plan_.buffers.size(); ++i) buffers_[i] = take(plan_.buffers[i]);
    whole_ = take(plan_.whole);
    unfolded_ = take(plan_.unfolded);
    expanded_ = take(plan_.expanded);
    middle_ = take(plan_.middle);
    projected_ = take(plan_.projected);
  }

  const MobileNetPlan& plan() const { return plan_; }

  void stem(Backend& backend, const float* pixels) {
    const MobileNetStep& step = plan_.steps.front();
    const size_t bytes = static_cast<size_t>(places(step.in) * kChannels) * sizeof(float);
    DeviceMemory memory = backend.allocate(bytes);
    backend.upload(pixels, bytes, memory.data());
    const Convolution c = same_convolution(step.in, kChannels, kStemKernel, kStemStride);
    const int64_t channels = config_.stem_channels;
    for_parts(step.out, [&](int64_t row, int64_t rows) {
      const int64_t count = rows * step.out.cols;
      float* const out = at(step.to, row * step.out.cols, channels);
      backend.unfold(c, memory.as<float>(), row, rows, unfolded_);
      multiply(backend, unfolded_, count, tower_.stem_, out);
      backend.add_bias(tower_.stem_bias_, count, channels, out);
      activate(backend, tower_.stem_norm_, count, channels, out);
    });
    tap(backend, "stem", buffers_[static_cast<size_t>(step.to)], places(step.out), channels);
  }

  void block(Backend& backend, const MobileNetStep& step) {
    const MobileNetBlock& shape = *step.block;
    const Block& block = tower_.stages_[step.stage][step.index];
    if (shape.adds_input() && step.from != step.to) {
      backend.copy(at(step.from), step.in_floats(), at(step.to));
    }
    if (shape.attends()) {
      attend(backend, step, shape, block);
    } else if (shape.kind == Kind::kEdge) {
      edge(backend, step, shape, block);
    } else {
      inverted(backend, step, shape, block);
    }
    if (taps_ && step.index + 1 == config_.stages[step.stage].size()) {
      tap(backend, "stages." + std::to_string(step.stage), at(step.to), places(step.out), shape.out_channels);
    }
  }

  void finish(Backend& backend, float* out) {
    const Grid grid = plan_.kept_grid, smaller = plan_.last_grid;
    const int64_t kept_channels = config_.stages[config_.stages.size() - 2].back().out_channels;
    const int64_t last_channels = config_.stages.back().back().out_channels, joint = plan_.joint;
    const int64_t hidden = config_.hidden_size, tokens = config_.tokens(), dim = tower_.hidden_size();
    float* const joined = whole_;
    float* const fused = joined + places(grid) * (kept_channels + last_channels);
    float* const rows = fused + places(grid) * hidden;

    // The outputs of the last two stages lie in one allocation, a whole multiple of `joint` floats apart.
    std::vector<int32_t> parts;
    const auto put = [&](int buffer, int64_t place, int64_t channels) {
      const int64_t first = (at(buffer) - memory_.as<float>()) / joint + place * channels / joint;
      for (int64_t i = 0; i < channels / joint; ++i) parts.push_back(static_cast<int32_t>(first + i));
    };
    for (int64_t place = 0; place < places(grid); ++place) {
      const int64_t row = nearest(place / grid.cols, smaller.rows, grid.rows);
      put(plan_.kept, place, kept_channels);
      put(plan_.last, row * smaller.cols + nearest(place % grid.cols, smaller.cols, grid.cols), last_channels);
    }
    backend.gather(memory_.as<float>(), parts, joint, joined);
    for_parts(grid, [&](int64_t row, int64_t count_rows) {
      const int64_t first = row * grid.cols, count = count_rows * grid.cols;
      multiply(backend, joined + first * (kept_channels + last_channels), count, tower_.fused_expansion_, expanded_);
      activate(backend, tower_.fused_expansion_norm_, count, config_.fused_inner, expanded_);
      multiply(backend, expanded_, count, tower_.fused_projection_, fused + first * hidden);
    });
    backend.rms_norm(fused, tower_.fused_projection_norm_, kEps, places(grid), hidden, fused);
    const Resampling how = resampling(grid, config_.tokens_per_side);
    backend.combine(fused, how.places, how.weights, how.per_place, hidden, rows);
    backend.rms_norm(rows, tower_.output_norm_, kEps, tokens, hidden, rows);
    tap(backend, "features", rows, tokens, hidden);
    backend.scale(std::sqrt(static_cast<float>(hidden)), tokens * hidden, rows);
    const auto eps = static_cast<float>(config_.rms_norm_eps);
    backend.rms_norm(rows, tower_.soft_norm_, eps, tokens, hidden, rows);
    const size_t bytes = static_cast<size_t>(tokens * dim) * sizeof(float);
    DeviceMemory soft = backend.allocate(bytes);
    multiply(backend, rows, tokens, tower_.projection_, soft.as<float>());
    backend.rms_norm(soft.as<float>(), nullptr, eps, tokens, dim, soft.as<float>());
    backend.download(soft.data(), bytes, out);
  }

 private:
  float* at(int buffer, int64_t place = 0, int64_t channels = 0) const {
    return buffers_[static_cast<size_t>(buffer)] + place * channels;
  }

  // Calls fn(row, rows) for each group of rows of an output that is computed at a time.
  template <typename Fn>
  void for_parts(Grid grid, const Fn& fn) {
    const int64_t most = rows_at_once(grid);
    for (int64_t row = 0; row < grid.rows; row += most) fn(row, std::min(most, grid.rows - row));
  }

  void multiply(Backend& backend, const float* x, int64_t rows, const Matrix& weight, float* out) {
    const Product product = {x, rows, &weight, out};
    products_.multiply(backend, product);
  }
  static void activate(Backend& backend, const float* norm, int64_t rows, int64_t channels, float* x) {
    backend.rms_norm(x, norm, kEps, rows, channels, x);
    backend.bias_gelu(nullptr, rows, channels, x);
  }

  // Computes the projection of the expansion x and the norm after it, for some places.
  void project(Backend& backend, const MobileNetBlock& shape, const Block& block, const float* x, int64_t count,
               float* out) {
    multiply(backend, x, count, block.projection, projected_);
    if (shape.adds_input()) {
      backend.add_branch(projected_, block.projection_norm, kEps, count, shape.out_channels, out);
    } else {
      backend.rms_norm(projected_, block.projection_norm, kEps, count, shape.out_channels, out);
    }
  }

  // Returns a copy of the input of a block if some parts of the block read places that other parts change.
  const float* unchanged(Backend& backend, const MobileNetStep& step, bool looks_around) {
    if (!looks_around || step.from != step.to) return at(step.from);
    backend.copy(at(step.from), step.in_floats(), whole_);
    return whole_;
  }

  void edge(Backend& backend, const MobileNetStep& step, const MobileNetBlock& shape, const Block& block) {
    const Convolution c = same_convolution(step.in, shape.in_channels, shape.start_kernel, shape.stride);
    const float* const x = unchanged(backend, step, shape.start_kernel > 1);
    for_parts(step.out, [&](int64_t row, int64_t rows) {
      const int64_t count = rows * step.out.cols;
      backend.unfold(c, x, row, rows, unfolded_);
      multiply(backend, unfolded_, count, block.expansion, expanded_);
      activate(backend, block.expansion_norm, count, shape.inner, expanded_);
      project(backend, shape, block, expanded_, count, at(step.to, row * step.out.cols, shape.out_channels));
    });
  }

  void inverted(Backend& backend, const MobileNetStep& step, const MobileNetBlock& shape, const Block& block) {
    const int64_t in = shape.in_channels;
    const int64_t middle_stride = shape.middle_kernel > 0 ? shape.stride : 1;
    const float* x = nullptr;
    Grid grid = step.in;
    if (block.start) {
      const Convolution c = same_convolution(step.in, in, shape.start_kernel, shape.stride / middle_stride);
      backend.depthwise(c, at(step.from), block.start, 0, c.out_rows(), whole_);
      grid = {c.out_rows(), c.out_cols()};
      backend.rms_norm(whole_, block.start_norm, kEps, places(grid), in, whole_);
      x = whole_;
    } else {
      x = unchanged(backend, step, block.middle);
    }
    const auto expand = [&](int64_t row, int64_t rows) {
      const int64_t count = rows * grid.cols;
      multiply(backend, x + row * grid.cols * in, count, block.expansion, expanded_);
      activate(backend, block.expansion_norm, count, shape.inner, expanded_);
    };
    for_parts(step.out, [&](int64_t row, int64_t rows) {
      const int64_t count = rows * step.out.cols;
      const float* inner = expanded_;
      if (block.middle) {
        Convolution c = same_convolution(grid, shape.inner, shape.middle_kernel, shape.stride);
        const int64_t top = row * c.stride - c.top, first = std::max<int64_t>(top, 0);
        const int64_t end = std::min(grid.rows, top + (rows - 1) * c.stride + c.kernel);
        expand(first, end - first);
        c.rows = end - first;
        c.top = first - top;
        backend.depthwise(c, expanded_, block.middle, 0, rows, middle_);
        activate(backend, block.middle_norm, count, shape.inner, middle_);
        inner = middle_;
      } else {
        expand(row, rows);
      }
      project(backend, shape, block, inner, count, at(step.to, row * step.out.cols, shape.out_channels));
    });
  }

  void attend(Backend& backend, const MobileNetStep& step, const MobileNetBlock& shape, const Block& block) {
    const Convolution c =
        same_convolution(step.in, shape.in_channels, std::max<int64_t>(shape.middle_kernel, 1), shape.stride);
    const int64_t in = shape.in_channels, out = shape.out_channels, heads = shape.num_heads * shape.head_dim;
    const int64_t count = places(step.in), keys = c.out_rows() * c.out_cols();
    float* const normed = whole_;  // also holds the output
    float* const q = normed + count * std::max(in, out);
    float* const attended = q + count * heads;
    float* const down = attended + count * heads;
    float* const k = down + keys * in;
    float* const v = k + keys * shape.head_dim;
    backend.rms_norm(at(step.from), block.norm, kEps, count, in, normed);
    multiply(backend, normed, count, block.query, q);
    const auto reduce = [&](const float* weight, const float* norm, const Matrix& matrix, float* to) {
      if (weight) {
        backend.depthwise(c, normed, weight, 0, c.out_rows(), down);
        backend.rms_norm(down, norm, kEps, keys, in, down);
      }
      multiply(backend, weight ? down : normed, keys, matrix, to);
    };
    reduce(block.key_down, block.key_norm, block.key, k);
    reduce(block.value_down, block.value_norm, block.value, v);
    AttentionShape attention = {};
    attention.num_heads = shape.num_heads;
    attention.num_kv_heads = 1;
    attention.head_dim = shape.head_dim;
    attention.query_scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    SelfAttention(backend, attention, block.query.format, keys).run_over(backend, q, count, k, v, attended);
    multiply(backend, attended, count, block.projection, normed);
    float* const to = at(step.to);
    if (shape.adds_input()) {
      backend.mul_rows(normed, block.scale, count, out, normed);
      backend.add_branch(normed, nullptr, 0, count, out, to);
    } else {
      backend.mul_rows(normed, block.scale, count, out, to);
    }
  }

  void tap(Backend& backend, const std::string& name, const float* values, int64_t rows, int64_t dim) {
    if (!taps_) return;
    std::vector<float> host(static_cast<size_t>(rows * dim));
    backend.download(values, host.size() * sizeof(float), host.data());
    (*taps_)(name, host.data(), rows, dim);
  }

  const MobileNet& tower_;
  const MobileNetConfig& config_;
  const TapSink* taps_;
  TowerProducts products_;
  const MobileNetPlan plan_;
  DeviceMemory memory_;
  std::array<float*, kBuffers> buffers_;
  float *whole_, *unfolded_, *expanded_, *middle_, *projected_;
};

void MobileNet::encode(const float* pixels, float* out, const Adapter* adapter, const std::atomic<bool>* cancel,
                       const TapSink* taps) const {
  const auto check_cancel = [&] {
    if (cancel && cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
  };
  Pass pass(*this, model_->backend(), adapter, taps);
  for (const MobileNetStep& step : pass.plan().steps) {
    check_cancel();
    model_->run(places(step.out), [&](Backend& backend) {
      if (step.block) {
        pass.block(backend, step);
      } else {
        pass.stem(backend, pixels);
      }
    });
  }
  check_cancel();
  model_->run(places(pass.plan().kept_grid), [&](Backend& backend) { pass.finish(backend, out); });
}

}  // namespace gemlet::vision
