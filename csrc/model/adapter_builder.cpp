#include "model/adapter_builder.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/aligned_buffer.h"
#include "base/cpu_limits.h"
#include "base/error.h"
#include "base/open_file.h"
#include "formats/quantize.h"
#include "model/model.h"
#include "model/tower_products.h"

namespace gemlet {
namespace {

using Layer = LayerWeights;
struct LayerTarget {
  const char* name;
  Target target;
  const Matrix& (*weight)(const Layer&);
};
constexpr LayerTarget kLayerTargets[] = {
    {"q_proj", Target::kQProj, [](const Layer& w) -> const Matrix& { return w.q_proj; }},
    {"k_proj", Target::kKProj, [](const Layer& w) -> const Matrix& { return w.k_proj; }},
    {"v_proj", Target::kVProj, [](const Layer& w) -> const Matrix& { return w.v_proj; }},
    {"o_proj", Target::kOProj, [](const Layer& w) -> const Matrix& { return w.o_proj; }},
    {"gate_proj", Target::kGateProj, [](const Layer& w) -> const Matrix& { return w.gate_proj; }},
    {"up_proj", Target::kUpProj, [](const Layer& w) -> const Matrix& { return w.up_proj; }},
    {"down_proj", Target::kDownProj, [](const Layer& w) -> const Matrix& { return w.down_proj; }},
    {"router_proj", Target::kRouterProj, [](const Layer& w) -> const Matrix& { return w.experts.router_proj; }},
    {"per_layer_input_gate", Target::kPerLayerInputGate,
     [](const Layer& w) -> const Matrix& { return w.per_layer_input_gate; }},
    {"per_layer_projection", Target::kPerLayerProjection,
     [](const Layer& w) -> const Matrix& { return w.per_layer_projection; }},
    {"altup_router", Target::kAltupRouter, [](const Layer& w) -> const Matrix& { return w.altup.router; }},
    {"laurel_left", Target::kLaurelLeft, [](const Layer& w) -> const Matrix& { return w.altup.laurel_left; }},
    {"laurel_right", Target::kLaurelRight, [](const Layer& w) -> const Matrix& { return w.altup.laurel_right; }},
};

struct LayerNorm {
  const char* name;
  const float* (*weight)(const Layer&);
  const char* balanced;  // a matrix after it that may be balanced; null: none
};
constexpr LayerNorm kLayerNorms[] = {
    {"pre_attention_norm", [](const Layer& w) { return w.pre_attention_norm; }, "q_proj"},
    {"q_norm", [](const Layer& w) { return w.q_norm; }, nullptr},
    {"k_norm", [](const Layer& w) { return w.k_norm; }, nullptr},
    {"post_attention_norm", [](const Layer& w) { return w.post_attention_norm; }, nullptr},
    {"pre_mlp_norm", [](const Layer& w) { return w.pre_mlp_norm; }, "gate_proj"},
    {"post_mlp_norm", [](const Layer& w) { return w.post_mlp_norm; }, nullptr},
    {"post_per_layer_input_norm", [](const Layer& w) { return w.post_per_layer_input_norm; }, nullptr},
    {"pre_moe_norm", [](const Layer& w) { return w.experts.pre_moe_norm; }, "experts.0.gate_up"},
    {"post_dense_norm", [](const Layer& w) { return w.experts.post_dense_norm; }, nullptr},
    {"post_moe_norm", [](const Layer& w) { return w.experts.post_moe_norm; }, nullptr},
    {"altup_router_norm", [](const Layer& w) { return w.altup.router_norm; }, nullptr},
    {"post_laurel_norm", [](const Layer& w) { return w.altup.post_laurel_norm; }, nullptr},
};

// The rows of a packed matrix, as float32, or of AltUp's `coefs` instead. They are read a few megabytes at a time:
// every read waits for the pass that is running.
class Rows {
 public:
  Rows(Model& model, const Matrix& matrix, const float* coefs, int64_t cols)
      : model_(model), matrix_(matrix), coefs_(coefs), cols_(cols), panel_bytes_(panel_bytes(matrix.format, cols)) {
    if (coefs) return;
    held_ = std::clamp<int64_t>((int64_t{4} << 20) / panel_bytes_, 1, matrix.panels());
    panels_ = AlignedBuffer(static_cast<size_t>(held_ * panel_bytes_));
  }
  void read(int64_t row, float* out) {  // called for each row in order, from the first
    if (coefs_) {
      const size_t bytes = static_cast<size_t>(cols_) * sizeof(float);
      model_.read_weights([&](const ModelWeights&) { model_.backend().download(coefs_ + row * cols_, bytes, out); });
      return;
    }
    const int64_t panel = row / kPanelRows;
    if (row % (held_ * kPanelRows) == 0) {
      const int64_t count = std::min(held_, matrix_.panels() - panel);
      model_.read_weights([&](const ModelWeights&) {
        model_.backend().download(matrix_.panel(panel), static_cast<size_t>(count * panel_bytes_), panels_.data());
      });
    }
    unpack_row({matrix_.format, held_ * kPanelRows, matrix_.cols, panels_.data()}, row % (held_ * kPanelRows), out);
  }

 private:
  Model& model_;
  const Matrix& matrix_;
  const float* coefs_;
  int64_t cols_, panel_bytes_, held_ = 0;
  AlignedBuffer panels_;
};

std::vector<float> widened(const SourceRows& source) {
  std::vector<float> values(static_cast<size_t>(source.shape[0] * source.shape[1]));
  widen(source.data, source.type, 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

// w [cols] += scale * b [rank] A [rank, cols], for a few columns at a time, which stay in registers.
void correct_row(const float* b, float scale, const std::vector<float>& a, std::vector<float>& w) {
  constexpr size_t kColumns = 32;
  const size_t cols = w.size(), rank = a.size() / cols;
  size_t first = 0;
  for (; first + kColumns <= cols; first += kColumns) {
    float sums[kColumns] = {};
    for (size_t j = 0; j < rank; ++j) {
      const float* const from = a.data() + j * cols + first;
      for (size_t i = 0; i < kColumns; ++i) sums[i] += b[j] * from[i];
    }
    for (size_t i = 0; i < kColumns; ++i) w[first + i] += scale * sums[i];
  }
  for (; first < cols; ++first) {
    float sum = 0;
    for (size_t j = 0; j < rank; ++j) sum += b[j] * a[j * cols + first];
    w[first] += scale * sum;
  }
}

// bf12 may have no room for an adapter's values.
Format own_rows_format(Format weights) { return weights == Format::kBf12 ? Format::kBf16 : weights; }

double length(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(sum);
}

}  // namespace

struct AdapterBuilder::Place {
  Target target = Target::kCount;
  size_t index = 0;
  Matrix weight;
  const float* coefs = nullptr;  // instead, of AltUp
  int64_t rows = 0, cols = 0;
  bool in_tower() const { return target == Target::kCount; }
  bool by_row() const { return target == Target::kEmbedTokens || target == Target::kPerLayerTable; }
};

struct AdapterBuilder::Norm {
  const float* weight = nullptr;
  int64_t dim = 0;
  std::vector<float> scale = {};  // [dim] what the model's weight was divided by after it was read; empty: ones
  bool times = false;             // it was multiplied instead
};

AdapterBuilder::AdapterBuilder(std::shared_ptr<Model> model)
    : model_(std::move(model)),
      adapter_(std::make_shared<Adapter>(model_, model_->adapter_total())),
      format_(adapter_format(model_->weight_format())),
      available_bytes_(available_memory()) {
  model_->read_weights([&](const ModelWeights& weights) {
    find_places(weights);
    find_norms(weights);
  });
}

AdapterBuilder::~AdapterBuilder() = default;

void AdapterBuilder::find_places(const ModelWeights& weights) {
  for (const auto& [name, matrix] : model_->towers().matrices()) {
    places_[name] = {Target::kCount, 0, matrix, nullptr, matrix.rows, matrix.cols};
  }
  const auto put = [&](const std::string& slot, Target target, size_t index, const Matrix& weight) {
    if (weight.rows > 0) places_[slot] = {target, index, weight, nullptr, weight.rows, weight.cols};
  };
  put("embed_tokens", Target::kEmbedTokens, 0, weights.embed_tokens);
  if (const RowTable& table = weights.per_layer_table; !table.empty()) {
    places_["embed_tokens_per_layer"] = {Target::kPerLayerTable, 0, {}, nullptr, table.rows(), table.cols()};
  }
  if (!model_->config().bidirectional) put("lm_head", Target::kLmHead, 0, weights.lm_head);
  // The dense matrices take the place of the head.
  for (size_t i = 0; i < weights.dense.size(); ++i) {
    put("dense." + std::to_string(i), Target::kLmHead, i, weights.dense[i]);
  }
  put("per_layer_model_projection", Target::kPerLayerModelProjection, 0, weights.per_layer_model_projection);
  for (size_t i = 0; i < weights.altup_projections.size(); ++i) {
    const std::string at = std::to_string(i);
    put("altup_projections." + at, Target::kAltupProjection, i, weights.altup_projections[i]);
    put("altup_unembed_projections." + at, Target::kAltupUnembedProjection, i, weights.altup_unembed_projections[i]);
  }
  const int64_t streams = model_->config().altup_streams;
  const size_t layers = weights.layers.size();
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const std::string at = "layers." + std::to_string(i) + ".";
    const LayerWeights& layer = weights.layers[i];
    for (const LayerTarget& known : kLayerTargets) put(at + known.name, known.target, i, known.weight(layer));
    for (size_t e = 0; e < layer.experts.gate_up.size(); ++e) {
      const std::string expert = at + "experts." + std::to_string(e) + ".";
      put(expert + "gate_up", Target::kExpertGateUp, i + e * layers, layer.experts.gate_up[e]);
      put(expert + "down", Target::kExpertDown, i + e * layers, layer.experts.down[e]);
    }
    if (layer.altup.prediction_coefs) {
      places_[at + "altup_prediction_coefs"] = {Target::kAltupPrediction, i,      {}, layer.altup.prediction_coefs,
                                                streams * streams,        streams};
      places_[at + "altup_correction_coefs"] = {Target::kAltupCorrection,     i,       {},
                                                layer.altup.correction_coefs, streams, streams};
    }
  }
}

void AdapterBuilder::find_norms(const ModelWeights& weights) {
  const ModelConfig& config = model_->config();
  norms_["final_norm"] = {weights.final_norm, config.hidden_size};
  if (weights.per_layer_projection_norm) {
    norms_["per_layer_projection_norm"] = {weights.per_layer_projection_norm, config.per_layer_input_size};
  }
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const std::string at = "layers." + std::to_string(i) + ".";
    for (const LayerNorm& known : kLayerNorms) {
      const float* const weight = known.weight(weights.layers[i]);
      if (!weight) continue;
      const bool query = weight == weights.layers[i].q_norm, key = weight == weights.layers[i].k_norm;
      Norm& norm = norms_[at + known.name] = {weight, query || key ? layer.head_dim : config.hidden_size};
      const Balance* const balance = known.balanced ? model_->balance(at + known.balanced) : nullptr;
      const int64_t source = layer.kv_source < 0 ? static_cast<int64_t>(i) : layer.kv_source;
      const std::vector<float>* const factors = query || key ? model_->key_factors(source) : nullptr;
      if (balance) norm.scale = balance->scale;
      if (factors) norm.scale = *factors;
      norm.times = query;
    }
  }
}

void AdapterBuilder::add(const std::string& slot, const SourceRows& a, const SourceRows& b, float scale,
                         std::span<const float> magnitudes, std::span<const float> bias) {
  if (!adapter_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  const auto found = places_.find(slot);
  if (found == places_.end()) {
    fail(ErrorCode::kTensor, "'", slot, "' is not a matrix of this model that an adapter can change");
  }
  const Place& place = found->second;
  if (term_of(place)) fail(ErrorCode::kTensor, "'", slot, "' was given twice");
  const bool table = place.by_row();  // A of a table comes transposed, so that it can be read by row
  const int64_t rank = b.shape.size() == 2 ? b.shape[1] : 0;
  const std::vector<int64_t> shape_a =
      table ? std::vector<int64_t>{place.rows, rank} : std::vector<int64_t>{rank, place.cols};
  const std::vector<int64_t> shape_b = {table ? place.cols : place.rows, rank};
  if (rank < 1 || a.shape != shape_a || b.shape != shape_b) {
    fail(ErrorCode::kTensor, "lora_A and lora_B of '", slot, "' have shapes ", shape_text(a.shape), " and ",
         shape_text(b.shape), ", expected ", shape_text(shape_a), " and ", shape_text(shape_b));
  }
  const int64_t outputs = shape_b[0];
  const int64_t lengths = place.target == Target::kPerLayerTable ? 0 : outputs;  // that table stays in its file
  if (!magnitudes.empty() && static_cast<int64_t>(magnitudes.size()) != lengths) {
    fail(ErrorCode::kTensor, "'", slot, "' has ", magnitudes.size(), " magnitudes, expected ", lengths);
  }
  if (!bias.empty() && (static_cast<int64_t>(bias.size()) != outputs || table || place.coefs || !magnitudes.empty())) {
    fail(ErrorCode::kTensor, "'", slot, "' has a bias of ", bias.size(), " values, expected ", outputs,
         " of a matrix without magnitudes, or none");
  }
  if (!std::isfinite(scale)) fail(ErrorCode::kTensor, "the scale of '", slot, "' is not finite");
  auto term = std::make_unique<LowRank>();
  term->scale = scale;
  const Balance* const balance = model_->balance(slot);
  if (!place.coefs) {
    term->a = allocate(format_, a.shape[0], a.shape[1]);
    term->b = allocate(format_, outputs, rank + (bias.empty() ? 0 : 1));
    pack(slot + " lora_A", a, term->a, 0, balance);
    std::vector<float> joined;  // B, with the bias as its last column
    if (!bias.empty()) {
      const std::vector<float> wide_b = widened(b);
      for (size_t i = 0; i < bias.size(); ++i) {
        const auto from = wide_b.begin() + static_cast<std::ptrdiff_t>(i) * rank;
        joined.insert(joined.end(), from, from + rank);
        joined.push_back(bias[i]);
      }
    }
    const SourceRows with_bias = {{outputs, rank + 1}, SourceType::kF32, reinterpret_cast<uint8_t*>(joined.data())};
    pack(slot + " lora_B", bias.empty() ? b : with_bias, term->b);
  }
  if (table && !magnitudes.empty()) {
    term->gain = keep(table_gains(place, widened(a), widened(b), scale, magnitudes));
  } else if (place.coefs || !magnitudes.empty()) {
    const std::vector<float> wide_a = widened(a), wide_b = widened(b);
    std::vector<float> row(static_cast<size_t>(place.cols)), changed, gains;
    Rows rows(*model_, place.weight, place.coefs, place.cols);
    for (int64_t i = 0; i < place.rows; ++i) {
      rows.read(i, row.data());
      for (size_t c = 0; balance && c < row.size(); ++c) row[c] /= balance->scale[c];
      correct_row(wide_b.data() + i * rank, scale, wide_a, row);
      const double gain = magnitudes.empty() ? 1.0 : magnitudes[static_cast<size_t>(i)] / length(row);
      gains.push_back(static_cast<float>(gain));
      if (place.coefs) {
        for (const float value : row) changed.push_back(value * gains.back());
      }
    }
    const std::vector<float>& kept = place.coefs ? changed : gains;
    for (const float value : kept) {
      if (!std::isfinite(value)) {
        fail(ErrorCode::kTensor, "'", slot, "' becomes NaN or infinity with lora_A, lora_B and the magnitudes");
      }
    }
    (place.coefs ? term->changed : term->gain) = keep(kept);
  }
  term_of(place) = std::move(term);
  if (!place.in_tower()) adapter_->max_rank_ = std::max(adapter_->max_rank_, rank + (bias.empty() ? 0 : 1));
}

std::unique_ptr<LowRank>& AdapterBuilder::term_of(const Place& place) {
  if (place.in_tower()) return adapter_->tower_terms_[place.weight.data];
  const size_t at = Adapter::place_of(place.target, place.index);
  if (at >= adapter_->terms_.size()) adapter_->terms_.resize(at + 1);
  return adapter_->terms_[at];
}

// DoRA of the embedding table gives lengths to its columns.
std::vector<float> AdapterBuilder::table_gains(const Place& place, std::span<const float> a, std::span<const float> b,
                                               float scale, std::span<const float> magnitudes) const {
  const auto rank = static_cast<size_t>(a.size()) / static_cast<size_t>(place.rows);
  std::vector<float> row(static_cast<size_t>(place.cols)), gains;
  std::vector<float> transposed(b.size());  // [rank, hidden]
  for (size_t c = 0; c < row.size(); ++c) {
    for (size_t j = 0; j < rank; ++j) transposed[j * row.size() + c] = b[c * rank + j];
  }
  std::vector<double> squares(row.size(), 0.0);
  Rows rows(*model_, place.weight, nullptr, place.cols);
  for (int64_t i = 0; i < place.rows; ++i) {
    rows.read(i, row.data());
    correct_row(a.data() + static_cast<size_t>(i) * rank, scale, transposed, row);
    for (size_t c = 0; c < row.size(); ++c) squares[c] += static_cast<double>(row[c]) * static_cast<double>(row[c]);
  }
  for (size_t c = 0; c < row.size(); ++c) {
    gains.push_back(static_cast<float>(magnitudes[c] / std::sqrt(squares[c])));
    if (!std::isfinite(gains.back())) {
      fail(ErrorCode::kTensor, "'embed_tokens' becomes NaN or infinity with its lora_A, lora_B and magnitudes");
    }
  }
  return gains;
}

const float* AdapterBuilder::keep(std::span<const float> values) {
  DeviceMemory memory = model_->backend().allocate(values.size_bytes());
  model_->backend().upload(values.data(), values.size_bytes(), memory.data());
  adapter_->storage_.push_back(std::move(memory));
  const auto bytes = static_cast<int64_t>(values.size_bytes());
  adapter_->bytes_ += bytes;
  *adapter_->total_ += bytes;
  return adapter_->storage_.back().as<float>();
}

void AdapterBuilder::add_rows(const std::string& slot, const SourceRows& source, std::span<const int32_t> ids) {
  if (!adapter_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  const auto found = places_.find(slot);
  if (found == places_.end() || (slot != "embed_tokens" && slot != "lm_head")) {
    fail(ErrorCode::kTensor, "'", slot, "' is not a matrix of this model whose rows an adapter can replace");
  }
  const Matrix& weight = found->second.weight;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < (i == 0 ? 0 : ids[i - 1] + 1) || ids[i] >= weight.rows) {
      fail(ErrorCode::kTensor, "'", slot, "' has a row for token ", ids[i], ", expected ascending ids below ",
           weight.rows);
    }
  }
  OwnRows& own = slot == "lm_head" ? adapter_->head_rows_ : adapter_->embedding_rows_;
  int64_t& filled = rows_filled_[slot];
  const int64_t all = own.empty() ? (ids.empty() ? weight.rows : static_cast<int64_t>(ids.size())) : own.rows.rows;
  const int64_t rows = source.shape.empty() ? 0 : source.shape[0];
  if (source.shape != std::vector<int64_t>{rows, weight.cols} || rows < 1 || rows > all - filled ||
      (rows % kPanelRows != 0 && rows != all - filled)) {
    fail(ErrorCode::kTensor, "rows of '", slot, "' have shape ", shape_text(source.shape), ", expected up to ",
         all - filled, " rows of ", weight.cols);
  }
  if (own.empty()) {
    own.rows = allocate(own_rows_format(weight.format), all, weight.cols);
    own.ids.assign(ids.begin(), ids.end());
  }
  pack(slot, source, own.rows, filled);
  filled += rows;
}

void AdapterBuilder::add_norm(const std::string& slot, std::vector<float> weight) {
  if (!adapter_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  const auto found = norms_.find(slot);
  if (found == norms_.end()) fail(ErrorCode::kTensor, "'", slot, "' is not a norm of this model");
  const Norm& norm = found->second;
  if (static_cast<int64_t>(weight.size()) != norm.dim || adapter_->norms_.count(norm.weight) > 0) {
    fail(ErrorCode::kTensor, "'", slot, "' has ", weight.size(), " values, expected ", norm.dim, ", given once");
  }
  for (size_t i = 0; i < weight.size(); ++i) {
    weight[i] += static_cast<float>(model_->config().norm_offset);
    if (!norm.scale.empty()) weight[i] = norm.times ? weight[i] * norm.scale[i] : weight[i] / norm.scale[i];
    if (!std::isfinite(weight[i])) fail(ErrorCode::kTensor, "'", slot, "' holds NaN or infinity");
  }
  adapter_->norms_[norm.weight] = keep(weight);
}

std::vector<float> AdapterBuilder::weight(const std::string& slot, int64_t* rows, int64_t* cols) {
  const auto found = places_.find(slot);
  const Place place = found == places_.end() ? Place() : found->second;
  if (place.weight.empty() && !place.coefs) fail(ErrorCode::kTensor, "'", slot, "' is not a matrix in memory");
  *rows = place.rows, *cols = place.cols;
  std::vector<float> values(static_cast<size_t>(place.rows * place.cols));
  const Balance* const balance = model_->balance(slot);
  Rows reader(*model_, place.weight, place.coefs, place.cols);
  for (int64_t i = 0; i < place.rows; ++i) {
    float* const row = values.data() + i * place.cols;
    reader.read(i, row);
    for (size_t c = 0; balance && c < balance->scale.size(); ++c) row[c] /= balance->scale[c];
  }
  return values;
}

void AdapterBuilder::set_per_layer_table(RowTable table, std::span<const int32_t> ids) {
  if (!adapter_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  const auto found = places_.find("embed_tokens_per_layer");
  const Place place = found == places_.end() ? Place() : found->second;
  const int64_t rows = ids.empty() ? place.rows : static_cast<int64_t>(ids.size());
  if (table.rows() != rows || table.cols() != place.cols) {
    fail(ErrorCode::kTensor, "'embed_tokens_per_layer' has shape ", shape_text({table.rows(), table.cols()}),
         ", expected ", shape_text({rows, place.cols}));
  }
  adapter_->per_layer_table_ = {std::move(table), {}};
  auto& places = adapter_->per_layer_table_.places;
  for (const int32_t id : ids) {
    const bool fits = id >= 0 && id < place.rows && places.emplace(id, static_cast<int32_t>(places.size())).second;
    if (!fits) fail(ErrorCode::kTensor, "'embed_tokens_per_layer' has token ", id, ", expected ids below ", place.rows);
  }
}

void AdapterBuilder::share_rows() {
  if (!adapter_ || adapter_->embedding_rows_.empty() || !adapter_->head_rows_.empty() ||
      model_->config().bidirectional) {
    fail(ErrorCode::kInvalidRequest, "there are no rows for the output head to share");
  }
  adapter_->head_rows_ = adapter_->embedding_rows_;
}

int64_t AdapterBuilder::rows_bytes(const std::string& slot, int64_t count) const {
  const auto found = places_.find(slot);
  if (found == places_.end() || (slot != "embed_tokens" && slot != "lm_head")) return 0;
  return packed_bytes(own_rows_format(found->second.weight.format), count, found->second.cols);
}

int64_t AdapterBuilder::tower_bytes(const std::string& slot, int64_t rank) const {
  const auto found = places_.find(slot);
  if (found == places_.end() || !found->second.in_tower()) return 0;
  return TowerProducts::bytes(found->second.rows, found->second.cols, rank, format_, model_->backend());
}

Matrix AdapterBuilder::allocate(Format format, int64_t rows, int64_t cols) {
  const int64_t bytes = packed_bytes(format, rows, cols);
  if (bytes > available_bytes_) {
    fail(ErrorCode::kMemory, "the adapter does not fit into the memory that is free; unload another one");
  }
  available_bytes_ -= bytes;
  adapter_->storage_.push_back(model_->backend().allocate(static_cast<size_t>(bytes)));
  adapter_->bytes_ += bytes;
  *adapter_->total_ += bytes;
  return {format, rows, cols, adapter_->storage_.back().data()};
}

void AdapterBuilder::pack(const std::string& what, const SourceRows& source, const Matrix& matrix, int64_t first_row,
                          const Balance* balance) {
  const int64_t rows = source.shape[0], cols = matrix.cols;
  if (has_own_scales(source.type)) {
    fail(ErrorCode::kUnsupported, "'", what, "' is in ", source_type_name(source.type),
         "; an adapter's own rows are read as floats only");
  }
  const int64_t panel_size = panel_bytes(matrix.format, cols), row_bytes = source_bytes(source.type, cols);
  std::vector<float> values(static_cast<size_t>(kPanelRows * cols));
  AlignedBuffer panel(static_cast<size_t>(panel_size));
  AlignedBuffer read(source.data ? 0 : static_cast<size_t>(kPanelRows * row_bytes));
  for (int64_t row = 0; row < rows; row += kPanelRows) {
    const int64_t count = std::min(kPanelRows, rows - row);
    if (source.data) {
      widen(source.data, source.type, row * cols, count * cols, values.data());
    } else if (read_fully(source.descriptor, source.offset + row * row_bytes, count * row_bytes, read.data())) {
      widen(read.data(), source.type, 0, count * cols, values.data());
    } else {
      fail(ErrorCode::kModelFile, "'", what, "': the file cannot be read or was cut short");
    }
    for (int64_t i = 0; balance && i < count * cols; ++i) {
      values[static_cast<size_t>(i)] *= balance->scale[static_cast<size_t>(i % cols)];
    }
    if (!pack_panel(matrix.format, values.data(), count, cols, panel.data())) {
      fail(ErrorCode::kTensor, "'", what, "' holds NaN, infinity or a value too large for format ",
           format_name(matrix.format), "; the file is damaged or the training diverged");
    }
    // The builder owns the memory of the matrix, which is constant for all others.
    auto* const to = const_cast<uint8_t*>(matrix.panel((first_row + row) / kPanelRows));
    model_->backend().upload(panel.data(), panel.size(), to);
  }
}

std::shared_ptr<Adapter> AdapterBuilder::finish(const std::array<uint8_t, 32>& digest) {
  if (!adapter_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  for (const auto& [slot, filled] : rows_filled_) {
    const OwnRows& own = slot == "lm_head" ? adapter_->head_rows_ : adapter_->embedding_rows_;
    if (filled < own.rows.rows) fail(ErrorCode::kTensor, "'", slot, "' has ", filled, " of ", own.rows.rows, " rows");
  }
  adapter_->digest_ = digest;
  return std::move(adapter_);
}

}  // namespace gemlet
