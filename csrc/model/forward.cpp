// THE forward pass. Formulas and their traps: csrc/MODEL.md.
#include "model/forward.h"

#include <algorithm>
#include <numeric>

#include "model/rope.h"

namespace gemlet {

ForwardPass::ForwardPass(ModelParts& model, const Batch& batch, std::span<const KvGrowth> growths)
    : model_(model),
      config_(model.config),
      weights_(model.weights),
      backend_(*model.backend),
      batch_(batch),
      eps_(static_cast<float>(config_.rms_norm_eps)) {
  add_parts(growths);
  find_adapter_runs();
  int64_t max_rank = 0;
  for (const AdapterRun& run : runs_) max_rank = std::max(max_rank, run.adapter->max_rank());
  model_.scratch.begin_pass(config_, backend_, rows_, max_rank);
  residual_ = take(Region::kResidual, config_.altup_streams * config_.hidden_size);
  normed_ = take(Region::kNormed, config_.hidden_size);
  branch_ = take(Region::kBranch, config_.hidden_size);
  make_rope_tables();
}

// Segments with the same adapter stand together, in the order in which the adapters first appear.
void ForwardPass::add_parts(std::span<const KvGrowth> growths) {
  std::vector<const Adapter*> adapters;
  for (const Segment& segment : batch_.segments) {
    if (std::find(adapters.begin(), adapters.end(), segment.adapter) == adapters.end()) {
      adapters.push_back(segment.adapter);
    }
  }
  for (const Adapter* adapter : adapters) {
    int64_t output = 0;
    for (size_t i = 0; i < batch_.segments.size(); ++i) {
      const Segment& segment = batch_.segments[i];
      const int64_t outputs = config_.bidirectional ? 1 : segment.logits_rows();
      if (segment.adapter == adapter) {
        const int64_t wanted = config_.bidirectional ? segment.rows() : outputs;
        const int64_t position = segment.kv->length();
        Part& part = parts_.emplace_back(Part{
            &segment, growths.empty() ? nullptr : &growths[i], rows_, segment.rows(), position, wanted, output, {}});
        for (const TokenSpan& span : segment.tokens.spans) {
          part.spans.push_back({position + span.begin, position + span.end});
        }
        for (const int32_t id : segment.tokens.ids) ids_.push_back(config_.embedded_as(id));
        rows_ += segment.rows();
        wanted_ += wanted;
      }
      output += outputs;
    }
  }
}

void ForwardPass::find_adapter_runs() {
  runs_.clear();
  for (const Part& part : parts_) {
    const Adapter* const adapter = part.segment->adapter;
    if (!adapter || part.rows == 0) continue;
    if (!runs_.empty() && runs_.back().adapter == adapter) {
      runs_.back().rows += part.rows;
    } else {
      runs_.push_back({adapter, part.row, part.rows});
    }
  }
}

void ForwardPass::norm(const float* x, const float* weight, float* out) {
  const int64_t hidden = config_.hidden_size;
  by_norm(weight, rows_, runs_, [&](const float* own, int64_t row, int64_t rows) {
    backend_.rms_norm(x + row * hidden, own, eps_, rows, hidden, out + row * hidden);
  });
}

void ForwardPass::add_normed(const float* x, const float* weight, float* residual) {
  const int64_t hidden = config_.hidden_size;
  by_norm(weight, rows_, runs_, [&](const float* own, int64_t row, int64_t rows) {
    backend_.add_branch(x + row * hidden, own, eps_, rows, hidden, residual + row * hidden);
  });
}

void ForwardPass::layer(size_t index) {
  if (wanted_ < rows_ && index == config_.last_cache_layer()) {
    complete_keys(index);
    keep_wanted_rows();
  }
  if (rows_ == 0) return;
  if (config_.altup_streams > 1) return altup_layer(index);
  const LayerWeights& w = weights_.layers[index];
  const int64_t hidden = config_.hidden_size;

  norm(residual_, w.pre_attention_norm, normed_);
  attention(index);
  tap_layer(index, "attention", branch_, hidden);
  add_normed(branch_, w.post_attention_norm, residual_);

  norm(residual_, w.pre_mlp_norm, normed_);
  mlp(index);
  tap_layer(index, "mlp", branch_, hidden);
  if (config_.layers[index].num_experts > 0) add_experts(index);
  add_normed(branch_, w.post_mlp_norm, residual_);

  if (config_.per_layer_input_size > 0) {
    per_layer_input(index, residual_);
    add_normed(branch_, w.post_per_layer_input_norm, residual_);
  }
  if (w.layer_scalar) backend_.scale_by(w.layer_scalar, rows_ * hidden, residual_);
  tap_layer(index, "output", residual_, hidden);
}

// Makes the keys and values of the last layer that writes to a cache, before the layer itself. That layer and all later
// ones then need only the rows that want logits.
void ForwardPass::complete_keys(size_t index) {
  const float* const x = config_.altup_streams > 1 ? altup_predict(index) : residual_;
  norm(x, weights_.layers[index].pre_attention_norm, normed_);
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
    std::erase_if(part.spans, [&](const TokenSpan& span) { return span.end <= part.position; });
  }
  // [blocks, rows, dim] -> [blocks, wanted, dim]. Rows only move to the front, so this works in place if done in order.
  const auto keep = [&](float* x, int64_t blocks, int64_t dim) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t i = 0; i < wanted_; ++i) {
        const int64_t from = block * rows_ + kept[static_cast<size_t>(i)], to = block * wanted_ + i;
        if (from != to) backend_.copy(x + from * dim, dim, x + to * dim);
      }
    }
  };
  keep(residual_, config_.altup_streams, config_.hidden_size);
  if (config_.per_layer_input_size > 0) {
    keep(take_per_layer_inputs(), 1, config_.per_layer_input_size * static_cast<int64_t>(config_.layers.size()));
  }
  rows_ = wanted_;
  find_adapter_runs();
  make_rope_tables();
}

void ForwardPass::make_rope_tables() {
  ropes_.clear();
  std::vector<int64_t> positions(static_cast<size_t>(rows_));
  for (const Part& part : parts_) {
    std::iota(positions.begin() + part.row, positions.begin() + part.row + part.rows, part.position);
  }
  int64_t dims = 0;
  for (const LayerConfig* kind : rope_kinds(config_)) dims += kind->head_dim;
  float* at = take(Region::kRopeAngles, dims);
  for (const LayerConfig* kind : rope_kinds(config_)) {
    const Rope& table = ropes_.emplace_back(Rope{kind, at, at + rows_ * (kind->head_dim / 2)});
    at += rows_ * kind->head_dim;
    backend_.rope_angles(rope_frequencies(*kind), positions, table.cosines, table.sines);
  }
}

const ForwardPass::Rope& ForwardPass::rope_of(const LayerConfig& layer) const {
  return *std::find_if(ropes_.begin(), ropes_.end(), [&](const Rope& rope) { return rope.kind->same_rope(layer); });
}

void ForwardPass::tap(const std::string& name, const float* data, int64_t dim) const {
  if (!batch_.taps) return;
  std::vector<float> values(static_cast<size_t>(rows_ * dim));
  backend_.download(data, values.size() * sizeof(float), values.data());
  (*batch_.taps)(name, values.data(), rows_, dim);
}

void ForwardPass::tap_layer(size_t index, const std::string& name, const float* data, int64_t dim) const {
  if (batch_.taps) tap("layers." + std::to_string(index) + "." + name, data, dim);
}

}  // namespace gemlet
