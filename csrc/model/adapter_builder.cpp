#include "model/adapter_builder.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "backend/staging.h"
#include "base/cpu_limits.h"
#include "base/error.h"
#include "formats/quantize.h"
#include "model/model.h"

namespace gemlet {
namespace {

// A matrix that an adapter may correct, and its shape in a layer (0 rows: the layer has none).
struct Target {
  const char* name;
  LowRank LayerAdapter::* term;
};
constexpr Target kTargets[] = {
    {"q_proj", &LayerAdapter::q_proj},       {"k_proj", &LayerAdapter::k_proj},
    {"v_proj", &LayerAdapter::v_proj},       {"o_proj", &LayerAdapter::o_proj},
    {"gate_proj", &LayerAdapter::gate_proj}, {"up_proj", &LayerAdapter::up_proj},
    {"down_proj", &LayerAdapter::down_proj},
};

struct Shape {
  int64_t rows, cols;
};
Shape target_shape(const LayerConfig& c, int64_t hidden, LowRank LayerAdapter::* term) {
  const int64_t queries = c.num_heads * c.head_dim;
  const int64_t keys = c.kv_source < 0 ? c.num_kv_heads * c.head_dim : 0;
  if (term == &LayerAdapter::q_proj) return {queries, hidden};
  if (term == &LayerAdapter::k_proj) return {keys, hidden};
  if (term == &LayerAdapter::v_proj) return {c.key_is_value ? 0 : keys, hidden};
  if (term == &LayerAdapter::o_proj) return {hidden, queries};
  if (term == &LayerAdapter::down_proj) return {hidden, c.intermediate_size};
  return {c.intermediate_size, hidden};  // gate_proj, up_proj
}

}  // namespace

AdapterBuilder::AdapterBuilder(std::shared_ptr<Model> model)
    : model_(std::move(model)),
      adapter_(std::make_shared<Adapter>(model_, model_->config().layers.size(), model_->adapter_total())),
      format_(adapter_format(model_->weight_format())),
      available_bytes_(available_memory()) {
  if (model_->closed()) fail(ErrorCode::kClosed, "the model is closed; load it again");
}

void AdapterBuilder::add(const std::string& slot, const SourceRows& a, const SourceRows& b, float scale) {
  if (!adapter_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  const std::string_view name = slot;
  const size_t dot = name.rfind('.');
  size_t index = adapter_->layers_.size();
  if (name.starts_with("layers.") && dot > 7) std::from_chars(name.data() + 7, name.data() + dot, index);
  const auto target = std::find_if(std::begin(kTargets), std::end(kTargets),
                                   [&](const Target& known) { return name.substr(dot + 1) == known.name; });
  Shape shape = {0, 0};
  if (index < adapter_->layers_.size() && target != std::end(kTargets)) {
    shape = target_shape(model_->config().layers[index], model_->config().hidden_size, target->term);
  }
  if (shape.rows == 0)
    fail(ErrorCode::kTensor, "'", slot, "' is not a matrix of this model that an adapter can change");
  LowRank& term = adapter_->layers_[index].*target->term;
  if (!term.empty()) fail(ErrorCode::kTensor, "'", slot, "' was given twice");
  const int64_t rank = a.shape.empty() ? 0 : a.shape[0];
  if (rank < 1 || a.shape != std::vector<int64_t>{rank, shape.cols} ||
      b.shape != std::vector<int64_t>{shape.rows, rank}) {
    fail(ErrorCode::kTensor, "lora_A and lora_B of '", slot, "' have shapes ", shape_text(a.shape), " and ",
         shape_text(b.shape), ", expected [rank, ", shape.cols, "] and [", shape.rows, ", rank]");
  }
  if (!std::isfinite(scale)) fail(ErrorCode::kTensor, "the scale of '", slot, "' is not finite");
  const Matrix packed_a = pack(slot + " lora_A", a);
  term.b = pack(slot + " lora_B", b);
  term.a = packed_a;
  term.scale = scale;
  adapter_->max_rank_ = std::max(adapter_->max_rank_, rank);
}

Matrix AdapterBuilder::pack(const std::string& what, const SourceRows& source) {
  const int64_t rows = source.shape[0], cols = source.shape[1];
  const int64_t bytes = packed_bytes(format_, rows, cols);
  if (bytes > available_bytes_) {
    fail(ErrorCode::kMemory, "the adapter does not fit into the memory that is free; unload another one");
  }
  available_bytes_ -= bytes;
  DeviceMemory memory = model_->backend().allocate(static_cast<size_t>(bytes));
  Staging staging(model_->backend(), memory.data(), bytes);
  std::vector<float> panel(static_cast<size_t>(kPanelRows * cols));
  for (int64_t row = 0; row < rows; row += kPanelRows) {
    const int64_t count = std::min(kPanelRows, rows - row);
    widen(source.data, source.type, row * cols, count * cols, panel.data());
    if (!pack_panel(format_, panel.data(), count, cols,
                    staging.host() + row / kPanelRows * panel_bytes(format_, cols))) {
      fail(ErrorCode::kTensor, "'", what, "' holds NaN, infinity or a value too large for format ",
           format_name(format_), "; the file is damaged or the training diverged");
    }
  }
  staging.finish();
  adapter_->storage_.push_back(std::move(memory));
  adapter_->bytes_ += bytes;
  *adapter_->total_ += bytes;
  return {format_, rows, cols, adapter_->storage_.back().data()};
}

std::shared_ptr<Adapter> AdapterBuilder::finish() {
  if (!adapter_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  return std::move(adapter_);
}

}  // namespace gemlet
