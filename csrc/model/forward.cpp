// THE forward pass. Formulas and their traps: csrc/MODEL.md.
#include "model/forward.h"

#include <algorithm>
#include <numeric>

#include "model/rope.h"

namespace gemlet {

ForwardPass::ForwardPass(Model& model, std::span<const Segment> batch, const TapSink* taps)
    : model_(model),
      config_(model.config()),
      weights_(model.weights()),
      backend_(model.backend()),
      taps_(taps),
      eps_(static_cast<float>(config_.rms_norm_eps)) {
  std::vector<const Adapter*> adapters;  // in the order of their first segment, which makes their rows consecutive
  for (const Segment& segment : batch) {
    if (std::find(adapters.begin(), adapters.end(), segment.adapter) == adapters.end()) {
      adapters.push_back(segment.adapter);
    }
  }
  for (const Adapter* adapter : adapters) {
    for (const Segment& segment : batch) {
      if (segment.adapter == adapter) add_part(segment);
    }
  }
  find_adapter_runs();
  allocate();
  make_rope_tables();
}

void ForwardPass::add_part(const Segment& segment) {
  const int64_t rows = static_cast<int64_t>(segment.ids.size());
  const bool all = config_.bidirectional || segment.wanted == LogitsWanted::kAll;
  const int64_t wanted = all ? rows : segment.wanted == LogitsWanted::kLast ? 1 : 0;
  parts_.push_back(
      {segment.kv, segment.adapter, rows_, rows, segment.kv->length(), wanted, segment.logits, segment.embedding});
  ids_.insert(ids_.end(), segment.ids.begin(), segment.ids.end());
  rows_ += rows;
  wanted_ += wanted;
}

namespace {

// Of what takes turns in the same scratch: q + attention output + k + v, gate + up, the experts, all dense outputs.
int64_t wide_floats(const ModelConfig& config) {
  int64_t wide = std::accumulate(config.dense_sizes.begin(), config.dense_sizes.end(), int64_t{0});
  for (const LayerConfig& layer : config.layers) {
    const int64_t heads = 2 * layer.num_heads + 2 * layer.num_kv_heads;
    // router input and logits, then per routed row: input, gate and up, activation, output
    const int64_t experts =
        layer.num_experts == 0
            ? 0
            : config.hidden_size + layer.num_experts +
                  layer.experts_per_token * (2 * config.hidden_size + 3 * layer.expert_intermediate_size);
    wide = std::max({wide, heads * layer.head_dim, 2 * layer.intermediate_size, experts});
  }
  return wide;
}

// One layer of each kind of rotation.
std::vector<const LayerConfig*> rope_examples(const ModelConfig& config) {
  std::vector<const LayerConfig*> examples;
  for (const LayerConfig& layer : config.layers) {
    const auto same = [&](const LayerConfig* known) { return known->same_rope(layer); };
    if (std::none_of(examples.begin(), examples.end(), same)) examples.push_back(&layer);
  }
  return examples;
}

}  // namespace

int64_t ForwardPass::floats_per_row(const ModelConfig& config) {
  int64_t rope = 0;
  for (const LayerConfig* layer : rope_examples(config)) rope += layer->head_dim;
  const int64_t hidden = config.hidden_size, streams = config.altup_streams;
  const int64_t per_layer = config.per_layer_input_size * (static_cast<int64_t>(config.layers.size()) + 1);
  const int64_t altup = streams > 1 ? streams * hidden + hidden + config.laurel_rank + streams : 0;
  return streams * hidden + 3 * hidden + wide_floats(config) + rope + per_layer + altup;
}

// A x of up to three matrices, and B (A x) of q + k + v, of gate + up, or of one that writes to the residual.
int64_t ForwardPass::adapter_floats_per_row(const ModelConfig& config, int64_t max_rank) {
  if (max_rank == 0) return 0;
  int64_t delta = config.hidden_size;
  for (const LayerConfig& layer : config.layers) {
    const int64_t heads = layer.num_heads + 2 * layer.num_kv_heads;
    delta = std::max({delta, heads * layer.head_dim, 2 * layer.intermediate_size});
  }
  return 3 * max_rank + delta;
}

int64_t ForwardPass::most_rows(const ModelConfig& config) {
  return config.bidirectional ? config.max_context : std::min(config.max_context, kChunkTokens);
}

// All scratch in one buffer that the model keeps between passes.
void ForwardPass::allocate() {
  for (const LayerConfig* layer : rope_examples(config_)) ropes_.push_back({layer, nullptr, nullptr});
  const int64_t hidden = config_.hidden_size;
  const int64_t streams = config_.altup_streams;
  int64_t max_rank = 0;
  for (const AdapterRun& run : runs_) max_rank = std::max(max_rank, run.adapter->max_rank());
  const int64_t low = 3 * max_rank, low_and_delta = adapter_floats_per_row(config_, max_rank);
  const size_t bytes = static_cast<size_t>(rows_ * (floats_per_row(config_) + low_and_delta)) * sizeof(float);
  AlignedBuffer& buffer = model_.activations_;
  if (buffer.size() < bytes) {
    buffer = AlignedBuffer();  // give the old one back first
    buffer = backend_.allocate(bytes);
  }
  float* at = buffer.as<float>();
  const auto take = [&](int64_t dim) {
    float* const start = at;
    at += rows_ * dim;
    return start;
  };
  x_ = take(streams * hidden);
  normed_ = take(hidden);
  branch_ = take(hidden);
  last_ = take(hidden);
  wide_ = take(wide_floats(config_));
  per_layer_ = take(config_.per_layer_input_size * static_cast<int64_t>(config_.layers.size()));
  per_layer_gate_ = take(config_.per_layer_input_size);
  adapter_low_ = take(low);
  adapter_delta_ = take(low_and_delta - low);
  if (streams > 1) {
    predicted_ = take(streams * hidden);
    laurel_ = take(hidden);
    low_rank_ = take(config_.laurel_rank);
    modalities_ = take(streams);
  }
  for (Rope& table : ropes_) {
    table.cosines = take(table.example->head_dim / 2);
    table.sines = take(table.example->head_dim / 2);
  }
}

void ForwardPass::embed() {
  if (weights_.embedding_on_disk) {
    embed_from_disk();
  } else {
    backend_.embed(weights_.embed_tokens, ids_, static_cast<float>(config_.embedding_scale), x_);
  }
  tap("embed", x_, config_.hidden_size);
  if (config_.per_layer_input_size > 0) make_per_layer_inputs();
  if (config_.altup_streams > 1) open_streams();
}

// The panels of the ids, read from the file into a small table.
void ForwardPass::embed_from_disk() {
  const Matrix& whole = weights_.embed_tokens;
  const int64_t bytes = panel_bytes(whole.format, whole.cols);
  const int64_t most = std::min(rows_, std::max<int64_t>(1, kResidentEmbeddingBytes / bytes));
  AlignedBuffer panels = backend_.allocate(static_cast<size_t>(most * bytes));
  std::vector<int32_t> ids;
  for (int64_t row = 0; row < rows_; row += static_cast<int64_t>(ids.size())) {
    ids.clear();
    for (int64_t i = 0; i < std::min(most, rows_ - row); ++i) {
      const int64_t id = ids_[static_cast<size_t>(row + i)];
      model_.mapping_->read(whole.panel(id / kPanelRows), bytes, panels.data() + i * bytes);
      ids.push_back(static_cast<int32_t>(i * kPanelRows + id % kPanelRows));
    }
    const Matrix table = {whole.format, most * kPanelRows, whole.cols, panels.data()};
    backend_.embed(table, ids, static_cast<float>(config_.embedding_scale), x_ + row * config_.hidden_size);
  }
}

void ForwardPass::layer(size_t index) {
  if (index == config_.last_cache_layer() && wanted_ < rows_) {
    complete_keys(index);
    keep_wanted_rows();
  }
  if (rows_ == 0) return;
  if (config_.altup_streams > 1) return altup_layer(index);
  const LayerWeights& w = weights_.layers[index];
  const int64_t hidden = config_.hidden_size;

  backend_.rms_norm(x_, w.pre_attention_norm, eps_, rows_, hidden, normed_);
  attention(index);
  tap_layer(index, "attention", branch_, hidden);
  backend_.add_branch(branch_, w.post_attention_norm, eps_, rows_, hidden, x_);

  backend_.rms_norm(x_, w.pre_mlp_norm, eps_, rows_, hidden, normed_);
  mlp(index);
  tap_layer(index, "mlp", branch_, hidden);
  if (config_.layers[index].num_experts > 0) add_experts(index);
  backend_.add_branch(branch_, w.post_mlp_norm, eps_, rows_, hidden, x_);

  if (config_.per_layer_input_size > 0) {
    per_layer_input(index, x_);
    backend_.add_branch(branch_, w.post_per_layer_input_norm, eps_, rows_, hidden, x_);
  }
  if (w.layer_scalar) backend_.scale(*w.layer_scalar, rows_ * hidden, x_);
  tap_layer(index, "output", x_, hidden);
}

// The keys and values of the last layer that writes to a cache, ahead of the layer itself, which then as all later ones
// needs only the rows that want logits.
void ForwardPass::complete_keys(size_t index) {
  const bool altup = config_.altup_streams > 1;
  if (altup) altup_predict(index);
  backend_.rms_norm(altup ? predicted_ : x_, weights_.layers[index].pre_attention_norm, eps_, rows_,
                    config_.hidden_size, normed_);
  attention(index, true);
  keys_are_complete_ = true;
}

void ForwardPass::keep_wanted_rows() {
  std::vector<int64_t> kept;
  for (Part& part : parts_) {
    const int64_t skipped = part.rows - part.wanted;
    for (int64_t i = 0; i < part.wanted; ++i) kept.push_back(part.row + skipped + i);
    part.row = static_cast<int64_t>(kept.size()) - part.wanted;
    part.rows = part.wanted;
    part.position += skipped;
  }
  // [blocks, rows, dim] -> [blocks, wanted, dim]; rows only move towards the front, so in order this works in place.
  const auto keep = [&](float* x, int64_t blocks, int64_t dim) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t i = 0; i < wanted_; ++i) {
        const int64_t from = block * rows_ + kept[static_cast<size_t>(i)], to = block * wanted_ + i;
        if (from != to) backend_.copy(x + from * dim, dim, x + to * dim);
      }
    }
  };
  keep(x_, config_.altup_streams, config_.hidden_size);
  if (config_.per_layer_input_size > 0) {
    keep(per_layer_, 1, config_.per_layer_input_size * static_cast<int64_t>(config_.layers.size()));
  }
  rows_ = wanted_;
  find_adapter_runs();
  make_rope_tables();
}

void ForwardPass::logits() {
  const int64_t hidden = config_.hidden_size;
  if (rows_ == 0) return;
  if (config_.altup_streams > 1) close_streams();
  if (taps_) {
    backend_.rms_norm(x_, weights_.final_norm, eps_, rows_, hidden, normed_);
    tap("final_norm", normed_, hidden);
  }
  for (const Part& part : parts_) {
    if (part.wanted == 0) continue;
    const float* from = x_ + (part.row + part.rows - part.wanted) * hidden;
    backend_.rms_norm(from, weights_.final_norm, eps_, part.wanted, hidden, last_);
    head(last_, part.wanted, part.logits);
    if (config_.final_softcap > 0) {
      backend_.softcap(static_cast<float>(config_.final_softcap), part.wanted, config_.vocab_size, part.logits);
    }
  }
}

void ForwardPass::head(const float* x, int64_t rows, float* logits) {
  const Matrix& whole = weights_.lm_head;
  // On disk, as many pairs of panels as may be resident; pairs, because kernels in tiles take two panels at a time.
  const int64_t pair_bytes = 2 * panel_bytes(whole.format, whole.cols);
  const int64_t most = weights_.embedding_on_disk
                           ? std::max<int64_t>(1, kResidentEmbeddingBytes / pair_bytes) * 2 * kPanelRows
                           : whole.rows;
  for (int64_t first = 0; first < whole.rows; first += most) {
    const Matrix part = whole.part(first, std::min(most, whole.rows - first));
    const Product product = {x, rows, &part, logits + first, whole.rows};
    backend_.matmul({&product, 1});
    if (weights_.embedding_on_disk) model_.mapping_->drop(part.data, part.bytes());
  }
}

// Of each text: the mean of its normed tokens, then the dense matrices.
void ForwardPass::embeddings() {
  const int64_t hidden = config_.hidden_size, texts = static_cast<int64_t>(parts_.size());
  backend_.rms_norm(x_, weights_.final_norm, eps_, rows_, hidden, normed_);
  tap("final_norm", normed_, hidden);
  for (int64_t i = 0; i < texts; ++i) {
    const Part& part = parts_[static_cast<size_t>(i)];
    std::vector<int32_t> places(static_cast<size_t>(part.rows));
    std::iota(places.begin(), places.end(), static_cast<int32_t>(part.row));
    const std::vector<float> shares(places.size(), 1.0f / static_cast<float>(part.rows));
    backend_.combine(normed_, places, shares, part.rows, hidden, last_ + i * hidden);
  }
  const float* x = last_;
  float* y = wide_;
  for (const Matrix& dense : weights_.dense) {
    const Product product = {x, texts, &dense, y};
    backend_.matmul({&product, 1});
    x = y;
    y += texts * dense.rows;
  }
  const int64_t size = config_.embedding_size();
  for (int64_t i = 0; i < texts; ++i) {
    backend_.copy(x + i * size, size, parts_[static_cast<size_t>(i)].embedding);
  }
}

void ForwardPass::make_rope_tables() {
  constexpr int64_t kTokens = 16;  // of one task: 512 tokens take milliseconds on one thread
  for (const Rope& table : ropes_) {
    const std::vector<float> frequencies = rope_frequencies(*table.example);
    const int64_t half = table.example->head_dim / 2;
    for (const Part& part : parts_) {
      const auto fill = [&](int64_t task) {
        for (int64_t token = task * kTokens; token < std::min(part.rows, (task + 1) * kTokens); ++token) {
          const int64_t at = (part.row + token) * half;
          rope_angles(frequencies, part.position + token, table.cosines + at, table.sines + at);
        }
      };
      backend_.parallel((part.rows + kTokens - 1) / kTokens,
                        [](const void* context, int64_t task) { (*static_cast<const decltype(fill)*>(context))(task); },
                        &fill);
    }
  }
}

void ForwardPass::tap(const std::string& name, const float* data, int64_t dim) const {
  if (taps_) (*taps_)(name, data, rows_, dim);
}

void ForwardPass::tap_layer(size_t index, const std::string& name, const float* data, int64_t dim) const {
  if (taps_) (*taps_)("layers." + std::to_string(index) + "." + name, data, rows_, dim);
}

}  // namespace gemlet
