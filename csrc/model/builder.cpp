// The slots of a ModelBuilder: which tensors a configuration has and the memory they take; and the finished model.
#include "model/builder.h"

#include <algorithm>
#include <mutex>
#include <numeric>

#include "base/cpu_limits.h"
#include "base/error.h"
#include "model/kv_layout.h"

namespace gemlet {
namespace {

constexpr int64_t kMostTowerValues = int64_t{1} << 36;  // values in one tensor, at most

}  // namespace

int64_t ModelBuilder::Slot::values() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

int64_t ModelBuilder::Slot::packed_bytes(int64_t count) const {
  if (matrix) return gemlet::packed_bytes(matrix->format, count, matrix->cols);
  return (values() * 4 + 63) / 64 * 64;
}

ModelBuilder::ModelBuilder(ModelConfig config, Format weights, Format embedding, KvFormat kv_format,
                           std::shared_ptr<Backend> backend, BuildMode mode, std::map<std::string, Format> formats,
                           bool embedding_on_disk, const std::map<std::string, TensorSpec>& towers,
                           std::set<std::string> rounded)
    : config_(std::move(config)),
      weight_format_(weights),
      kv_format_(kv_format),
      backend_(std::move(backend)),
      mode_(mode),
      formats_(std::move(formats)),
      rounded_(std::move(rounded)) {
  config_.validate();
  if (!backend_->attends(kv_format_)) {
    fail(ErrorCode::kUnsupported, "device '", backend_->tier(), "' has no attention over a KV cache in ",
         kv_format_name(kv_format_), "; use device='cpu', or kv_cache='int8'");
  }
  if (config_.exact_gelu && !backend_->has_exact_gelu()) {
    fail(ErrorCode::kUnsupported, "device '", backend_->tier(), "' has no exact GELU; use device='cpu'");
  }
  weights_.embedding_on_disk = embedding_on_disk;
  const int64_t hidden = config_.hidden_size;
  const size_t layers = config_.layers.size();
  declare_matrix("embed_tokens", config_.vocab_size, hidden, embedding, &weights_.embed_tokens);
  if (!config_.tied_embeddings) {
    declare_matrix("lm_head", config_.vocab_size, hidden, embedding, &weights_.lm_head);
  }
  declare_norm("final_norm", hidden, &weights_.final_norm);
  if (const int64_t size = config_.per_layer_input_size; size > 0) {
    declare_matrix("per_layer_model_projection", static_cast<int64_t>(layers) * size, hidden, weight_format_,
                   &weights_.per_layer_model_projection);
    declare_norm("per_layer_projection_norm", size, &weights_.per_layer_projection_norm);
  }
  const size_t others = static_cast<size_t>(config_.altup_streams - 1);
  weights_.altup_projections.resize(others);
  weights_.altup_unembed_projections.resize(others);
  for (size_t k = 0; k < others; ++k) {
    const std::string number = std::to_string(k);
    declare_matrix("altup_projections." + number, hidden, hidden, weight_format_, &weights_.altup_projections[k]);
    declare_matrix("altup_unembed_projections." + number, hidden, hidden, weight_format_,
                   &weights_.altup_unembed_projections[k]);
  }
  if (const int64_t size = config_.target_size; size > 0) {
    declare_matrix("pre_projection", hidden, 2 * size, weight_format_, &weights_.pre_projection);
    declare_matrix("post_projection", size, hidden, weight_format_, &weights_.post_projection);
    if (config_.centroids > 0) {
      declare_matrix("centroids", config_.centroids, hidden, weight_format_, &weights_.centroids);
    }
  }
  weights_.dense.resize(config_.dense_sizes.size());
  for (size_t i = 0; i < weights_.dense.size(); ++i) {
    declare_matrix("dense." + std::to_string(i), config_.dense_sizes[i], i > 0 ? config_.dense_sizes[i - 1] : hidden,
                   weight_format_, &weights_.dense[i]);
  }
  weights_.layers.resize(layers);
  for (size_t i = 0; i < layers; ++i) {
    declare_layer("layers." + std::to_string(i) + ".", config_.layers[i], weights_.layers[i]);
  }
  for (const auto& [name, spec] : towers) declare_tower(name, spec);
  for (const auto& [name, format] : formats_) {
    const auto slot = slots_.find(name);
    if (slot == slots_.end() || !slot->second.matrix) {
      fail(ErrorCode::kInvalidRequest, "formats names '", name, "', which is not a matrix of this model");
    }
  }
  for (const std::string& name : rounded_) {
    if (roundings_.count(name) == 0) {
      fail(ErrorCode::kInvalidRequest, "rounded names '", name, "', which is not a matrix of the text model");
    }
  }
}

void ModelBuilder::declare_layer(const std::string& at, const LayerConfig& c, LayerWeights& w) {
  const int64_t hidden = config_.hidden_size;
  declare_norm(at + "pre_attention_norm", hidden, &w.pre_attention_norm);
  declare_matrix(at + "q_proj", c.num_heads * c.head_dim, hidden, weight_format_, &w.q_proj);
  const bool owns_cache = c.kv_source < 0;
  if (owns_cache) declare_matrix(at + "k_proj", c.num_kv_heads * c.head_dim, hidden, weight_format_, &w.k_proj);
  if (owns_cache && !c.key_is_value) {
    declare_matrix(at + "v_proj", c.num_kv_heads * c.head_dim, hidden, weight_format_, &w.v_proj);
  }
  // LAuReL adds the norm's output to the residual, so that output cannot be changed.
  if (config_.altup_streams == 1) {
    declare_balance(at + "attention_balance", at + "pre_attention_norm", {at + "q_proj", at + "k_proj", at + "v_proj"});
  }
  declare_matrix(at + "o_proj", hidden, c.num_heads * c.head_dim, weight_format_, &w.o_proj);
  if (c.qk_norm) {
    declare_norm(at + "q_norm", c.head_dim, &w.q_norm);
    if (owns_cache) declare_norm(at + "k_norm", c.head_dim, &w.k_norm);
  }
  declare_norm(at + "pre_mlp_norm", hidden, &w.pre_mlp_norm);
  declare_matrix(at + "gate_proj", c.intermediate_size, hidden, weight_format_, &w.gate_proj);
  declare_matrix(at + "up_proj", c.intermediate_size, hidden, weight_format_, &w.up_proj);
  declare_balance(at + "mlp_balance", at + "pre_mlp_norm", {at + "gate_proj", at + "up_proj"});
  declare_matrix(at + "down_proj", hidden, c.intermediate_size, weight_format_, &w.down_proj);
  if (c.post_norms) {
    declare_norm(at + "post_attention_norm", hidden, &w.post_attention_norm);
    declare_norm(at + "post_mlp_norm", hidden, &w.post_mlp_norm);
  }
  if (c.num_experts > 0) declare_experts(at, c, w.experts);
  if (const int64_t size = config_.per_layer_input_size; size > 0) {
    declare_matrix(at + "per_layer_input_gate", size, hidden, weight_format_, &w.per_layer_input_gate);
    declare_matrix(at + "per_layer_projection", hidden, size, weight_format_, &w.per_layer_projection);
    declare_norm(at + "post_per_layer_input_norm", hidden, &w.post_per_layer_input_norm);
  }
  if (c.layer_scalar) declare_vector(at + "layer_scalar", {1}, 1.0f, &w.layer_scalar);
  if (config_.altup_streams > 1) declare_altup(at, w.altup);
}

// Routers stay in f32: they are small, and sending a token to another expert is a large error.
void ModelBuilder::declare_experts(const std::string& at, const LayerConfig& c, ExpertWeights& w) {
  const int64_t hidden = config_.hidden_size;
  declare_norm(at + "pre_moe_norm", hidden, &w.pre_moe_norm);
  declare_norm(at + "post_dense_norm", hidden, &w.post_dense_norm);
  declare_norm(at + "post_moe_norm", hidden, &w.post_moe_norm);
  declare_vector(at + "router_scale", {hidden}, 1.0f, &w.router_scale);
  declare_matrix(at + "router_proj", c.num_experts, hidden, Format::kF32, &w.router_proj);
  declare_vector(at + "router_per_expert_scale", {c.num_experts}, 1.0f, &w.router_per_expert_scale);
  w.gate_up.resize(static_cast<size_t>(c.num_experts));
  w.down.resize(static_cast<size_t>(c.num_experts));
  std::vector<std::string> balanced;
  for (size_t e = 0; e < w.gate_up.size(); ++e) {
    const std::string expert = at + "experts." + std::to_string(e) + ".";
    declare_matrix(expert + "gate_up", 2 * c.expert_intermediate_size, hidden, weight_format_, &w.gate_up[e]);
    declare_matrix(expert + "down", hidden, c.expert_intermediate_size, weight_format_, &w.down[e]);
    slots_[expert + "gate_up"].routed = slots_[expert + "down"].routed = true;
    balanced.push_back(expert + "gate_up");
  }
  declare_balance(at + "moe_balance", at + "pre_moe_norm", balanced);
}

void ModelBuilder::declare_altup(const std::string& at, AltupWeights& w) {
  const int64_t hidden = config_.hidden_size, streams = config_.altup_streams;
  declare_norm(at + "altup_router_norm", hidden, &w.router_norm);
  declare_matrix(at + "altup_router", streams, hidden, Format::kF32, &w.router);
  declare_vector(at + "altup_prediction_coefs", {streams * streams, streams}, 0.0f, &w.prediction_coefs);
  declare_vector(at + "altup_correction_coefs", {streams, streams}, 0.0f, &w.correction_coefs);
  declare_vector(at + "altup_correct_scale", {hidden}, 1.0f, &w.correct_scale);
  declare_matrix(at + "laurel_left", config_.laurel_rank, hidden, weight_format_, &w.laurel_left);
  declare_matrix(at + "laurel_right", hidden, config_.laurel_rank, weight_format_, &w.laurel_right);
  declare_norm(at + "post_laurel_norm", hidden, &w.post_laurel_norm);
}

void ModelBuilder::declare_tower(const std::string& name, const TensorSpec& spec) {
  if (slots_.count(name) > 0) fail(ErrorCode::kInvalidRequest, "tensor '", name, "' is part of the text model");
  int64_t values = 1;
  for (const int64_t size : spec.shape) {
    if (size < 1 || size > kMostTowerValues / values) {
      fail(ErrorCode::kConfig, "tensor '", name, "' has shape ", shape_text(spec.shape), ", expected sizes of 1 or ",
           "more and at most ", kMostTowerValues, " values");
    }
    values *= size;
  }
  if (spec.kind == TensorKind::kMatrix || spec.kind == TensorKind::kExact) {
    if (spec.shape.size() < 2) fail(ErrorCode::kConfig, "tensor '", name, "' has too few dimensions for a matrix");
    const Format format = spec.kind == TensorKind::kExact ? Format::kF32 : weight_format_;
    declare_matrix(name, spec.shape[0], values / spec.shape[0], format, &towers_.make_matrix(name));
    slots_[name].shape = spec.shape;
  } else {
    Tensors::Floats& floats = towers_.make_floats(name);
    floats.shape = spec.shape;
    const float offset = spec.kind == TensorKind::kNorm ? static_cast<float>(config_.norm_offset) : 0.0f;
    declare_vector(name, spec.shape, spec.kind == TensorKind::kNorm ? 1.0f - offset : 0.0f, &floats.data);
    slots_[name].offset = offset;
  }
  slots_[name].tower = true;
}

uint8_t* ModelBuilder::allocate(int64_t bytes) {
  promised_bytes_ += bytes;
  if (promised_bytes_ > available_bytes_) {
    fail(ErrorCode::kMemory, "the weights need more than the ", available_bytes_ >> 20,
         " MB of memory that are free; use a smaller model or fewer bits per weight");
  }
  storage_.push_back(backend_->allocate(static_cast<size_t>(bytes)));
  return storage_.back().data();
}

MemoryPlan ModelBuilder::plan(SourceType table_type, int threads) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  if (threads == 0) {
    threads = mode_ == BuildMode::kPlan ? default_threads(detect_cpu_limits()).threads : backend_->threads();
  }
  MemoryPlan plan;
  for (const auto& [name, slot] : slots_) {
    const int64_t bytes = slot.packed_bytes(slot.rows());
    (name == "embed_tokens" || name == "lm_head" ? plan.embedding : plan.weights) += bytes;
  }
  plan.kv_cache = KvLayout(config_, kv_format_, *backend_).peak_bytes();
  plan.activations = activation_bytes(config_, weights_, *backend_, threads);
  if (needs_per_layer_table()) {
    const int64_t cols = config_.per_layer_input_size * static_cast<int64_t>(config_.layers.size());
    plan.on_disk = config_.per_layer_vocab_size * source_bytes(table_type, cols);
  }
  if (weights_.embedding_on_disk) {
    plan.on_disk += plan.embedding;
    plan.embedding = std::min(plan.embedding, kResidentEmbeddingBytes);
  }
  return plan;
}

std::map<std::string, ModelBuilder::Slot> ModelBuilder::slots() {
  const std::lock_guard<ForkMutex> lock(mutex_);
  return slots_;
}

void ModelBuilder::declare_matrix(const std::string& name, int64_t rows, int64_t cols, Format format, Matrix* matrix) {
  if (const auto own = formats_.find(name); own != formats_.end()) format = own->second;
  *matrix = {format, rows, cols, nullptr};
  if (rounded_.count(name) > 0) {
    matrix->rounding = {1.0f,
                        1.0f};  // a plan needs only to know that there is a rounding; take_roundings() sets the scales
    declare_vector(name + "_rounding", {2}, 0.25f, &roundings_[name]);
  }
  if (!backend_->multiplies(*matrix)) {
    fail(ErrorCode::kUnsupported, "device '", backend_->tier(), "' has no product with '", name, "', which is in ",
         format_name(format), matrix->rounding.any() ? " with rounded inputs" : "",
         "; use device='cpu', or weights in another format");
  }
  Slot& slot = slots_[name];
  slot.shape = {rows, cols};
  slot.matrix = matrix;
  if (mode_ == BuildMode::kAllocate) set_storage(slot, slot.storage = allocate(slot.packed_bytes(rows)));
}

void ModelBuilder::set_storage(Slot& slot, const uint8_t* storage) {
  if (slot.matrix) {
    slot.matrix->data = storage;
  } else {
    *slot.vector = reinterpret_cast<const float*>(storage);
  }
}

void ModelBuilder::declare_vector(const std::string& name, std::vector<int64_t> shape, float neutral,
                                  const float** vector) {
  Slot& slot = slots_[name];
  slot.shape = std::move(shape);
  slot.vector = vector;
  slot.neutral = neutral;
  if (mode_ == BuildMode::kAllocate) set_storage(slot, slot.storage = allocate(slot.packed_bytes(1)));
}

// One vector for all `matrices` that the model has, because they share the norm. None if no matrix has a format that
// takes it.
void ModelBuilder::declare_balance(const std::string& name, const std::string& norm,
                                   const std::vector<std::string>& matrices) {
  const auto takes = [&](const std::string& matrix) {
    const auto slot = slots_.find(matrix);
    return slot != slots_.end() && takes_balance(slot->second.matrix->format);
  };
  // Fixed scales are for the output of the norm as it is.
  const auto is_rounded = [&](const std::string& matrix) { return rounded_.count(matrix) > 0; };
  if (std::none_of(matrices.begin(), matrices.end(), takes) ||
      std::any_of(matrices.begin(), matrices.end(), is_rounded)) {
    return;
  }
  Slot balance;
  balance.shape = {config_.hidden_size};
  balance.is_balance = true;
  balance.balance = std::make_shared<Balance>();
  slots_[norm].balance = balance.balance;
  for (const std::string& matrix : matrices) {
    if (const auto slot = slots_.find(matrix); slot != slots_.end()) slot->second.balance = balance.balance;
  }
  slots_[name] = std::move(balance);
}

void ModelBuilder::declare_norm(const std::string& name, int64_t dim, const float** norm) {
  const float offset = static_cast<float>(config_.norm_offset);
  declare_vector(name, {dim}, 1.0f - offset, norm);
  slots_[name].offset = offset;
}

void ModelBuilder::set_per_layer_table(RowTable table) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  accept_per_layer_table(std::move(table));
}

void ModelBuilder::accept_per_layer_table(RowTable table) {
  const int64_t rows = config_.per_layer_vocab_size;
  const int64_t cols = config_.per_layer_input_size * static_cast<int64_t>(config_.layers.size());
  if (!needs_per_layer_table()) fail(ErrorCode::kTensor, "tensor 'embed_tokens_per_layer' is not part of this model");
  if (table.rows() != rows || table.cols() != cols) {
    fail(ErrorCode::kTensor, "tensor 'embed_tokens_per_layer' has shape ", shape_text({table.rows(), table.cols()}),
         ", expected ", shape_text({rows, cols}));
  }
  weights_.per_layer_table = std::move(table);
}

// Reads the scales that were given. A product whose scales are zero is an ordinary one.
void ModelBuilder::take_roundings() {
  for (const auto& [name, address] : roundings_) {
    float scales[2];
    backend_->download(address, sizeof scales, scales);
    for (const float scale : scales) {
      if (!(scale >= 0 && scale <= 3.4e38f)) {
        fail(ErrorCode::kTensor, "the scale of the inputs or outputs of '", name, "' is ", scale,
             ", expected a number that is finite and not negative");
      }
    }
    slots_[name].matrix->rounding = {scales[0], scales[1]};
  }
}

// Norms of their own for queries and keys, in place of those of the slots, which may be in a mapped file.
void ModelBuilder::balance_keys() {
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    std::vector<LayerWeights*> readers;  // the layers that read these keys
    bool all_have_norms = true;
    for (size_t j = i; j < weights_.layers.size(); ++j) {
      if (j != i && config_.layers[j].kv_source != static_cast<int64_t>(i)) continue;
      readers.push_back(&weights_.layers[j]);
      all_have_norms = all_have_norms && config_.layers[j].qk_norm;
    }
    if (!all_have_norms || config_.layers[i].kv_source >= 0) continue;
    const int64_t dim = config_.layers[i].head_dim;
    std::vector<float> keys = read_norm(weights_.layers[i].k_norm, dim);
    const std::vector<float> factors = key_factors(keys, read_norm(weights_.layers[i].q_norm, dim), kv_format_);
    for (size_t c = 0; c < keys.size(); ++c) keys[c] /= factors[c];
    replace_norm(keys, &weights_.layers[i].k_norm);
    for (LayerWeights* const layer : readers) {
      std::vector<float> queries = read_norm(layer->q_norm, dim);
      for (size_t c = 0; c < queries.size(); ++c) queries[c] *= factors[c];
      replace_norm(queries, &layer->q_norm);
    }
    key_factors_[i] = factors;
  }
}

// An assistant's queries meet the keys of its target.
void ModelBuilder::balance_queries() {
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const std::vector<float>* const factors = target_->key_factors(config_.layers[i].kv_source);
    if (!factors) continue;
    std::vector<float> queries = read_norm(weights_.layers[i].q_norm, config_.layers[i].head_dim);
    for (size_t c = 0; c < queries.size(); ++c) queries[c] *= (*factors)[c];
    replace_norm(queries, &weights_.layers[i].q_norm);
  }
}

std::vector<float> ModelBuilder::read_norm(const float* norm, int64_t dim) {
  std::vector<float> values(static_cast<size_t>(dim));
  backend_->download(norm, values.size() * sizeof(float), values.data());
  return values;
}

void ModelBuilder::replace_norm(const std::vector<float>& values, const float** norm) {
  uint8_t* const memory = allocate(static_cast<int64_t>(values.size() * sizeof(float)));
  backend_->upload(values.data(), values.size() * sizeof(float), memory);
  *norm = reinterpret_cast<const float*>(memory);
}

void ModelBuilder::draft_for(std::shared_ptr<const Model> target) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  const ModelConfig& of = target->config();
  if (config_.target_size != of.hidden_size || config_.vocab_size != of.vocab_size) {
    fail(ErrorCode::kConfig, "the assistant is for a model of hidden size ", config_.target_size, " with ",
         config_.vocab_size, " tokens, but the model has hidden size ", of.hidden_size, " and ", of.vocab_size,
         " tokens");
  }
  if (target->weights().embedding_on_disk) {
    fail(ErrorCode::kUnsupported,
         "an assistant reads the embedding of its model in memory; load the model without embedding_on_disk");
  }
  if (target->kv().layout().format != kv_format_) {
    fail(ErrorCode::kInvalidRequest, "an assistant reads the KV cache of its model, which is in ",
         kv_format_name(target->kv().layout().format), ", not in ", kv_format_name(kv_format_),
         "; give both the same kv_cache");
  }
  for (size_t i = 0; i < config_.layers.size(); ++i) {
    const LayerConfig& own = config_.layers[i];
    const auto source = static_cast<size_t>(own.kv_source);
    if (source >= of.layers.size() || of.layers[source].kv_source >= 0 ||
        (of.layers[source].sliding_window > 0) != (own.sliding_window > 0) ||
        of.layers[source].num_kv_heads != own.num_kv_heads || of.layers[source].head_dim != own.head_dim) {
      fail(ErrorCode::kConfig, "layer ", i, " of the assistant reads the keys and values of layer ", own.kv_source,
           " of the model, which has other ones: expected ", own.num_kv_heads, " heads of ", own.head_dim);
    }
  }
  target_ = std::move(target);
}

void ModelBuilder::set_token_order(std::vector<int32_t> ids) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  const bool has_ids =
      std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return id >= 0 && id < config_.vocab_size; });
  if (config_.centroids == 0 || static_cast<int64_t>(ids.size()) != config_.vocab_size || !has_ids) {
    fail(ErrorCode::kTensor, "tensor 'token_ordering' has to name the ids 0 to ", config_.vocab_size - 1,
         " of an assistant with centroids");
  }
  weights_.token_order = std::move(ids);
}

std::unique_ptr<Model> ModelBuilder::finish() {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_can_fill();
  if (finished_) fail(ErrorCode::kInvalidRequest, "finish() was already called");
  ModelSize size;
  Balances balances;
  for (const auto& [name, slot] : slots_) {
    const int64_t bytes = slot.packed_bytes(slot.rows());
    if (slot.is_balance && slot.balance->settled) {
      size.weight_bytes += bytes;
      continue;
    }
    if (!slot.filled()) {
      fail(ErrorCode::kTensor, "tensor '", name, "' is missing: expected shape ", shape_text(slot.shape));
    }
    if (slot.matrix && slot.balance && !slot.balance->scale.empty()) balances[name] = slot.balance;
    size.parameters += slot.values();
    size.weight_bytes += bytes;
    if (slot.tower) continue;
    if (slot.routed) {
      size.expert_bytes += bytes;
    } else if (name != "embed_tokens" || config_.tied_embeddings) {  // a table that is not the head is read by row
      size.dense_bytes += bytes;
    }
  }
  if (weights_.embedding_on_disk && !mapping_) {
    fail(ErrorCode::kInvalidRequest, "embedding_on_disk, but no file was mapped");
  }
  if (needs_per_layer_table()) {
    if (weights_.per_layer_table.empty()) {
      fail(ErrorCode::kTensor, "tensor 'embed_tokens_per_layer' is missing");
    }
    size.parameters += weights_.per_layer_table.rows() * weights_.per_layer_table.cols();
  }
  take_roundings();
  if (config_.tied_embeddings) weights_.lm_head = weights_.embed_tokens;
  if ((config_.target_size > 0) != (target_ != nullptr)) {
    fail(ErrorCode::kInvalidRequest, target_
                                         ? "target_size is 0, so the model is not an assistant; do not give `beside`"
                                         : "an assistant needs its target model; give that model as `beside`");
  }
  if (config_.centroids > 0 && weights_.token_order.empty()) {
    weights_.token_order.resize(static_cast<size_t>(config_.vocab_size));
    std::iota(weights_.token_order.begin(), weights_.token_order.end(), 0);
  }
  if (target_) {
    balance_queries();
  } else if (kv_format_ == KvFormat::kInt8 || kv_format_ == KvFormat::kInt4) {
    balance_keys();
  }
  finished_ = true;
  slots_.clear();
  rows_scratch_.reset();
  raw_scratch_.reset();
  auto kv = std::make_unique<KvPool>(config_, kv_format_, *backend_);
  return std::make_unique<Model>(
      ModelParts{std::move(config_), std::move(weights_), std::move(mapping_), std::move(backend_), std::move(kv),
                 weight_format_, std::move(key_factors_), std::move(balances), std::move(towers_)},
      std::move(storage_), size);
}

}  // namespace gemlet
