// THE forward pass. Formulas and their traps: csrc/MODEL.md.
#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace gemlet {

Model::Model(ModelConfig config, ModelWeights weights, std::vector<AlignedBuffer> storage,
             std::unique_ptr<Backend> backend, Format weight_format, KvFormat kv_format)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      storage_(std::move(storage)),
      backend_(std::move(backend)),
      weight_format_(weight_format),
      kv_layout_(config_, kv_format) {}

void Model::forward(std::span<const Segment> batch, const std::atomic<bool>* cancel, const TapSink* taps) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) fail(ErrorCode::kClosed, "the model is closed; load it again");
  for (const Segment& segment : batch) {
    for (const int32_t id : segment.ids) {
      if (id < 0 || id >= config_.vocab_size) {
        fail(ErrorCode::kInvalidRequest, "token id ", id, " is out of range: the vocabulary has ids 0 to ",
             config_.vocab_size - 1);
      }
    }
    const int64_t after = segment.kv->length() + static_cast<int64_t>(segment.ids.size());
    if (after > config_.max_context) {
      fail(ErrorCode::kContextLength, after, " tokens do not fit the context of ", config_.max_context,
           "; shorten the prompt, or load with a larger max_context if the model allows it");
    }
  }
  for (const Segment& segment : batch) segment.kv->reserve(static_cast<int64_t>(segment.ids.size()));
  const auto check_cancelled = [&] {
    if (cancel && cancel->load(std::memory_order_relaxed)) fail(ErrorCode::kCancelled, "cancelled");
  };

  ForwardPass pass(*this, batch, taps);
  pass.embed();
  for (size_t index = 0; index < config_.layers.size(); ++index) {
    check_cancelled();
    pass.layer(index);
  }
  check_cancelled();
  pass.logits();
  for (const Segment& segment : batch) segment.kv->commit(static_cast<int64_t>(segment.ids.size()));
}

ForwardPass::ForwardPass(Model& model, std::span<const Segment> batch, const TapSink* taps)
    : model_(model),
      backend_(model.backend()),
      batch_(batch),
      taps_(taps),
      eps_(static_cast<float>(model.config().rms_norm_eps)) {
  const ModelConfig& config = model.config();
  for (const Segment& segment : batch) rows_ += static_cast<int64_t>(segment.ids.size());
  int64_t wide = 0;
  int64_t rope = 0;
  for (const LayerConfig& layer : config.layers) {
    const int64_t heads = 2 * layer.num_heads + 2 * layer.num_kv_heads;  // q, attention output, k, v
    wide = std::max({wide, heads * layer.head_dim, 2 * layer.intermediate_size});
    const auto same = [&](const Rope& known) { return known.example->same_rope(layer); };
    if (std::none_of(ropes_.begin(), ropes_.end(), same)) {
      ropes_.push_back({&layer, nullptr, nullptr});
      rope += layer.head_dim;
    }
  }
  const size_t floats = static_cast<size_t>(rows_) * static_cast<size_t>(4 * config.hidden_size + wide + rope);
  if (model.activations_.size() < floats * sizeof(float)) {
    model.activations_ = AlignedBuffer();  // give the old one back first
    model.activations_ = backend_.allocate(floats * sizeof(float));
  }
  float* at = model.activations_.as<float>();
  const auto take = [&](int64_t dim) {
    float* const start = at;
    at += rows_ * dim;
    return start;
  };
  x_ = take(config.hidden_size);
  normed_ = take(config.hidden_size);
  branch_ = take(config.hidden_size);
  last_ = take(config.hidden_size);
  wide_ = take(wide);
  for (Rope& table : ropes_) {
    table.cosines = take(table.example->head_dim / 2);
    table.sines = take(table.example->head_dim / 2);
  }
  make_rope_tables();
}

void ForwardPass::embed() {
  const ModelConfig& config = model_.config();
  float* at = x_;
  for (const Segment& segment : batch_) {
    backend_.embed(model_.weights().embed_tokens, segment.ids, static_cast<float>(config.embedding_scale), at);
    at += static_cast<int64_t>(segment.ids.size()) * config.hidden_size;
  }
  tap("embed", x_, config.hidden_size);
}

void ForwardPass::layer(size_t index) {
  const int64_t hidden = model_.config().hidden_size;
  const LayerWeights& w = model_.weights().layers[index];

  backend_.rms_norm(x_, w.pre_attention_norm, eps_, rows_, hidden, normed_);
  attention(index);
  tap_layer(index, "attention", branch_, hidden);
  backend_.add_branch(branch_, w.post_attention_norm, eps_, rows_, hidden, x_);

  backend_.rms_norm(x_, w.pre_mlp_norm, eps_, rows_, hidden, normed_);
  mlp(index);
  tap_layer(index, "mlp", branch_, hidden);
  backend_.add_branch(branch_, w.post_mlp_norm, eps_, rows_, hidden, x_);
  tap_layer(index, "output", x_, hidden);
}

void ForwardPass::logits() {
  const ModelConfig& config = model_.config();
  const int64_t hidden = config.hidden_size;
  if (taps_) {
    backend_.rms_norm(x_, model_.weights().final_norm, eps_, rows_, hidden, normed_);
    tap("final_norm", normed_, hidden);
  }
  int64_t row = 0;
  for (const Segment& segment : batch_) {
    const int64_t rows = static_cast<int64_t>(segment.ids.size());
    const int64_t wanted = segment.wanted == LogitsWanted::kNone ? 0 : segment.wanted == LogitsWanted::kLast ? 1 : rows;
    row += rows;
    if (wanted == 0) continue;
    const float* from = x_ + (row - wanted) * hidden;
    backend_.rms_norm(from, model_.weights().final_norm, eps_, wanted, hidden, last_);
    const MatmulTarget head = {&model_.weights().lm_head, segment.logits};
    backend_.matmul(last_, wanted, {&head, 1});
    if (config.final_softcap > 0) {
      backend_.softcap(static_cast<float>(config.final_softcap), wanted, config.vocab_size, segment.logits);
    }
  }
}

// theta_i = base^(-2i / head_dim) / factor, computed in float32 like the reference: at far positions the rounding of theta
// decides the angle.
void ForwardPass::make_rope_tables() {
  for (const Rope& table : ropes_) {
    const int64_t half = table.example->head_dim / 2;
    std::vector<float> inverse_frequency(static_cast<size_t>(half));
    for (int64_t i = 0; i < half; ++i) {
      const float exponent = static_cast<float>(2 * i) / static_cast<float>(table.example->head_dim);
      const float power = static_cast<float>(std::pow(table.example->rope_theta, static_cast<double>(exponent)));
      inverse_frequency[static_cast<size_t>(i)] = 1.0f / power / static_cast<float>(table.example->rope_scaling_factor);
    }
    int64_t row = 0;
    for (const Segment& segment : batch_) {
      for (size_t token = 0; token < segment.ids.size(); ++token, ++row) {
        const float position = static_cast<float>(segment.kv->length() + static_cast<int64_t>(token));
        for (int64_t i = 0; i < half; ++i) {
          const float angle = position * inverse_frequency[static_cast<size_t>(i)];
          table.cosines[row * half + i] = std::cos(angle);
          table.sines[row * half + i] = std::sin(angle);
        }
      }
    }
  }
}

void ForwardPass::tap(const char* name, const float* data, int64_t dim) const {
  if (taps_) (*taps_)(name, data, rows_, dim);
}

void ForwardPass::tap_layer(size_t index, const char* name, const float* data, int64_t dim) const {
  if (taps_) (*taps_)("layers." + std::to_string(index) + "." + name, data, rows_, dim);
}

int64_t Model::weight_bytes() const {
  int64_t bytes = 0;
  for (const AlignedBuffer& buffer : storage_) bytes += static_cast<int64_t>(buffer.size());
  return bytes;
}

int64_t Model::parameter_count() const {
  const auto size = [](const Matrix& m) { return m.rows * m.cols; };
  int64_t count = size(weights_.embed_tokens) + config_.hidden_size;
  if (!config_.tied_embeddings) count += size(weights_.lm_head);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const LayerWeights& w = weights_.layers[i];
    for (const Matrix* m : {&w.q_proj, &w.k_proj, &w.v_proj, &w.o_proj, &w.gate_proj, &w.up_proj, &w.down_proj}) {
      count += size(*m);
    }
    count += config_.hidden_size * (config_.layers[i].post_norms ? 4 : 2);
    if (config_.layers[i].qk_norm) count += 2 * config_.layers[i].head_dim;
  }
  return count;
}

int64_t Model::decode_bytes(int64_t depth) const {
  int64_t bytes = weights_.lm_head.bytes();
  for (const LayerWeights& w : weights_.layers) {
    for (const Matrix* m : {&w.q_proj, &w.k_proj, &w.v_proj, &w.o_proj, &w.gate_proj, &w.up_proj, &w.down_proj}) {
      bytes += m->bytes();
    }
  }
  for (const KvLayout::Kind& kind : kv_layout_.kinds) {
    const int64_t seen = kind.window > 0 ? std::min(depth, kind.window) : depth;
    bytes += kind.block_bytes() / 64 * seen;
  }
  return bytes;
}

void Model::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  weights_ = ModelWeights();
  storage_.clear();
  activations_ = AlignedBuffer();
}

}  // namespace gemlet
