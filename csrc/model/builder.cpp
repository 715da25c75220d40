#include "model/builder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/float_bits.h"
#include "formats/quantize.h"

namespace gemlet {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

void widen(const void* data, SourceType type, int64_t first, int64_t count, float* out) {
  switch (type) {
    case SourceType::kF32:
      std::memcpy(out, static_cast<const uint8_t*>(data) + first * 4, static_cast<size_t>(count) * 4);
      return;
    case SourceType::kBf16:
    case SourceType::kF16: {
      const uint8_t* source = static_cast<const uint8_t*>(data) + first * 2;
      for (int64_t i = 0; i < count; ++i) {
        uint16_t bits;
        std::memcpy(&bits, source + i * 2, 2);  // a file may place tensors at any byte
        out[i] = type == SourceType::kBf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
      }
      return;
    }
  }
}

}  // namespace

ModelBuilder::ModelBuilder(ModelConfig config, Format weights, Format embedding, KvFormat kv_format,
                           std::unique_ptr<Backend> backend)
    : config_(std::move(config)), weight_format_(weights), kv_format_(kv_format), backend_(std::move(backend)) {
  config_.validate();
  const int64_t hidden = config_.hidden_size;
  declare_matrix("embed_tokens", config_.vocab_size, hidden, embedding, &weights_.embed_tokens);
  if (!config_.tied_embeddings) {
    declare_matrix("lm_head", config_.vocab_size, hidden, embedding, &weights_.lm_head);
  }
  declare_norm("final_norm", hidden, &weights_.final_norm);
  weights_.layers.resize(config_.layers.size());
  for (size_t i = 0; i < config_.layers.size(); ++i) {
    const LayerConfig& c = config_.layers[i];
    LayerWeights& w = weights_.layers[i];
    const std::string at = "layers." + std::to_string(i) + ".";
    declare_norm(at + "pre_attention_norm", hidden, &w.pre_attention_norm);
    declare_matrix(at + "q_proj", c.num_heads * c.head_dim, hidden, weights, &w.q_proj);
    declare_matrix(at + "k_proj", c.num_kv_heads * c.head_dim, hidden, weights, &w.k_proj);
    declare_matrix(at + "v_proj", c.num_kv_heads * c.head_dim, hidden, weights, &w.v_proj);
    declare_matrix(at + "o_proj", hidden, c.num_heads * c.head_dim, weights, &w.o_proj);
    if (c.qk_norm) {
      declare_norm(at + "q_norm", c.head_dim, &w.q_norm);
      declare_norm(at + "k_norm", c.head_dim, &w.k_norm);
    }
    declare_norm(at + "pre_mlp_norm", hidden, &w.pre_mlp_norm);
    declare_matrix(at + "gate_proj", c.intermediate_size, hidden, weights, &w.gate_proj);
    declare_matrix(at + "up_proj", c.intermediate_size, hidden, weights, &w.up_proj);
    declare_matrix(at + "down_proj", hidden, c.intermediate_size, weights, &w.down_proj);
    if (c.post_norms) {
      declare_norm(at + "post_attention_norm", hidden, &w.post_attention_norm);
      declare_norm(at + "post_mlp_norm", hidden, &w.post_mlp_norm);
    }
  }
  if (config_.tied_embeddings) weights_.lm_head = weights_.embed_tokens;
}

void ModelBuilder::declare_matrix(const std::string& name, int64_t rows, int64_t cols, Format format, Matrix* matrix) {
  storage_.push_back(backend_->allocate(static_cast<size_t>(packed_bytes(format, rows, cols))));
  *matrix = {format, rows, cols, storage_.back().data()};
  slots_[name] = {{rows, cols}, matrix, nullptr, storage_.back().data(), 0};
}

void ModelBuilder::declare_norm(const std::string& name, int64_t dim, const float** norm) {
  storage_.push_back(backend_->allocate(static_cast<size_t>(dim) * sizeof(float)));
  *norm = storage_.back().as<float>();
  slots_[name] = {{dim}, nullptr, norm, storage_.back().data(), 0};
}

// read_rows(first, count, out) gives `count` rows from row `first` of the tensor as float32; called from several threads.
template <typename ReadRows>
void ModelBuilder::fill(const std::string& name, Slot& slot, int64_t first_row, int64_t row_count,
                        const ReadRows& read_rows) {
  std::atomic<bool> finite{true};
  if (slot.norm) {
    float* const out = reinterpret_cast<float*>(slot.storage);
    read_rows(0, 1, out);
    for (int64_t i = 0; i < slot.shape[0]; ++i) {
      if (!std::isfinite(out[i])) finite = false;
      out[i] += static_cast<float>(config_.norm_offset);
    }
  } else {
    const Matrix& matrix = *slot.matrix;
    const auto pack = [&](int64_t index) {
      thread_local std::vector<float> rows;
      const int64_t panel = first_row / kPanelRows + index;
      const int64_t count = std::min(kPanelRows, matrix.rows - panel * kPanelRows);
      rows.resize(static_cast<size_t>(kPanelRows * matrix.cols));
      read_rows(panel * kPanelRows, count, rows.data());
      uint8_t* const out = slot.storage + panel * panel_bytes(matrix.format, matrix.cols);
      if (!pack_panel(matrix.format, rows.data(), count, matrix.cols, out)) finite = false;
    };
    backend_->parallel(
        panel_count(row_count),
        [](const void* context, int64_t index) { (*static_cast<const decltype(pack)*>(context))(index); }, &pack);
  }
  if (!finite) {
    fail(ErrorCode::kTensor, "tensor '", name, "' holds NaN, infinity or a value too large for format ",
         slot.matrix ? format_name(slot.matrix->format) : "f32", "; the file is damaged or the training diverged");
  }
  slot.rows_filled += row_count;
}

void ModelBuilder::add(const std::string& name, const std::vector<int64_t>& shape, const void* data, SourceType type,
                       int64_t first_row) {
  const auto found = slots_.find(name);
  if (finished_ || found == slots_.end()) fail(ErrorCode::kTensor, "tensor '", name, "' is not part of this model");
  Slot& slot = found->second;
  if (slot.filled()) fail(ErrorCode::kTensor, "tensor '", name, "' was given twice");
  const bool matrix = slot.matrix != nullptr;
  if (first_row != slot.rows_filled) {
    fail(ErrorCode::kTensor, "tensor '", name, "': got rows from ", first_row, ", expected the next ones, from ",
         slot.rows_filled);
  }
  // What remains of the tensor, or the next full panels of it.
  const int64_t rows = matrix && !shape.empty() ? shape[0] : 1;
  const int64_t left = slot.rows() - first_row;
  const bool fits = shape.size() == slot.shape.size() && shape.back() == slot.shape.back() &&
                    (rows == left || (rows > 0 && rows < left && rows % kPanelRows == 0));
  if (!fits) {
    std::vector<int64_t> expected = slot.shape;
    if (matrix) expected[0] = left;
    fail(ErrorCode::kTensor, "tensor '", name, "' has shape ", shape_text(shape), ", expected ", shape_text(expected));
  }
  const int64_t cols = shape.back();
  fill(name, slot, first_row, rows,
       [&](int64_t first, int64_t count, float* out) { widen(data, type, (first - first_row) * cols, count * cols, out); });
}

void ModelBuilder::add_random(uint64_t seed) {
  uint64_t tensor = 0;
  for (auto& [name, slot] : slots_) {
    ++tensor;
    if (slot.rows_filled > 0) continue;
    const int64_t cols = slot.shape.back();
    // Uniform with the standard deviation 1/sqrt(cols) that keeps activations' size; norms around their neutral value.
    const float scale = slot.norm ? 0.1f : std::sqrt(3.0f / static_cast<float>(cols));
    const float neutral = slot.norm ? 1.0f - static_cast<float>(config_.norm_offset) : 0.0f;
    const uint64_t start = mix(seed ^ (tensor << 40));
    fill(name, slot, 0, slot.rows(), [&](int64_t first, int64_t count, float* out) {
      for (int64_t r = 0; r < count; ++r) {
        uint64_t state = mix(start + static_cast<uint64_t>(first + r));
        for (int64_t c = 0; c < cols; ++c) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          out[r * cols + c] = neutral + scale * (static_cast<float>(state >> 40) * 0x1p-23f - 1.0f);
        }
      }
    });
  }
}

std::unique_ptr<Model> ModelBuilder::finish() {
  for (const auto& [name, slot] : slots_) {
    if (!slot.filled()) fail(ErrorCode::kTensor, "tensor '", name, "' is missing: expected shape ", shape_text(slot.shape));
  }
  if (finished_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  finished_ = true;
  slots_.clear();
  return std::make_unique<Model>(std::move(config_), std::move(weights_), std::move(storage_), std::move(backend_),
                                 weight_format_, kv_format_);
}

}  // namespace gemlet
