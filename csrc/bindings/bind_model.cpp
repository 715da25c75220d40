#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <set>

#include "backend/guarded.h"
#include "base/error.h"
#include "base/open_file.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/interruptible.h"
#include "engine/embedding.h"
#include "engine/sequence.h"
#include "formats/bf12.h"
#include "model/adapter_builder.h"
#include "model/builder.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

KvFormat kv_format(const std::string& name) {
  const auto format = kv_format_from_name(name);
  if (!format)
    fail(ErrorCode::kInvalidRequest, "KV cache format '", name, "' is unknown; expected ", kv_format_names());
  return *format;
}

SourceType source_type(const std::string& name, const std::string& dtype) {
  if (const auto type = source_type_from_name(dtype)) return *type;
  fail(ErrorCode::kTensor, "tensor '", name, "' has dtype tag '", dtype,
       "', expected f32, bf16, f16, a block type of GGUF or integers with scales");
}

// Rows in an array, which has to outlive their use.
SourceRows array_rows(const std::string& name, const py::array& data, const std::string& dtype) {
  const SourceType type = source_type(name, dtype);
  if (has_own_scales(type)) {
    fail(ErrorCode::kTensor, "tensor '", name, "' tagged ", dtype, " must come from a file, with its scales");
  }
  const char kind = type == SourceType::kF32 ? 'f' : 'u';
  const int64_t block = source_block_values(type), bytes = source_block_bytes(type);
  const py::ssize_t item = block > 1 ? 1 : bytes;
  std::vector<int64_t> shape(data.shape(), data.shape() + data.ndim());
  if (data.dtype().kind() != kind || data.itemsize() != item || data.dtype().byteorder() == '>' ||
      !(data.flags() & py::array::c_style) || (block > 1 && (shape.empty() || shape.back() % bytes != 0))) {
    fail(ErrorCode::kTensor, "tensor '", name, "' tagged ", dtype, " must be a C-contiguous ",
         kind == 'f' ? "float32 array"
         : block > 1 ? "uint8 array with rows of whole blocks"
                     : "uint16 array");
  }
  if (block > 1) shape.back() = shape.back() / bytes * block;
  return {std::move(shape), type, data.data()};
}

using Scales = std::optional<py::array_t<float, py::array::c_style>>;
std::vector<float> scales_of(const Scales& scales) {
  return scales ? std::vector<float>(scales->data(), scales->data() + scales->size()) : std::vector<float>();
}

using TowerTensors = std::map<std::string, std::pair<std::vector<int64_t>, std::string>>;

std::map<std::string, TensorSpec> tower_specs(const TowerTensors& towers) {
  static const std::map<std::string, TensorKind> kKinds = {{"matrix", TensorKind::kMatrix},
                                                           {"exact", TensorKind::kExact},
                                                           {"floats", TensorKind::kFloats},
                                                           {"norm", TensorKind::kNorm}};
  std::map<std::string, TensorSpec> specs;
  for (const auto& [name, tensor] : towers) {
    const auto kind = kKinds.find(tensor.second);
    if (kind == kKinds.end()) {
      fail(ErrorCode::kInvalidRequest, "tensor '", name, "' is of kind '", tensor.second,
           "', expected 'matrix', 'exact', 'floats' or 'norm'");
    }
    specs[name] = {tensor.first, kind->second};
  }
  return specs;
}

void add_random(ModelBuilder& builder, uint64_t seed, const py::object& done) {
  std::optional<GilRelease> released(std::in_place);
  builder.add_random(seed, [&](int64_t bytes) {
    released.reset();
    in_python([&] {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (!done.is_none()) done(bytes);
    });
    released.emplace();
  });
}

void add(ModelBuilder& builder, const std::string& name, const py::array& data, const std::string& dtype,
         int64_t first_row, bool balanced) {
  SourceRows rows = array_rows(name, data, dtype);
  rows.balanced = balanced;
  const GilRelease release;
  builder.add(name, rows, first_row);
}

py::array_t<uint8_t> pack_source(ModelBuilder& builder, const std::string& name, const SourceRows& source,
                                 int64_t first_row) {
  py::array_t<uint8_t> out(builder.packed_bytes(name, source.shape.empty() ? 0 : source.shape[0]));
  uint8_t* const to = out.mutable_data();
  const GilRelease release;
  builder.pack(name, source, first_row, to);
  return out;
}

void add_low_rank(AdapterBuilder& builder, const std::string& name, const py::array& a, const std::string& a_dtype,
                  const py::array& b, const std::string& b_dtype, float scale, const std::vector<float>& magnitudes,
                  const std::vector<float>& bias) {
  const SourceRows rows_a = array_rows(name, a, a_dtype), rows_b = array_rows(name, b, b_dtype);
  const GilRelease release;
  builder.add(name, rows_a, rows_b, scale, magnitudes, bias);
}

py::array_t<uint8_t> pack(ModelBuilder& builder, const std::string& name, const py::array& data,
                          const std::string& dtype, int64_t first_row, bool balanced) {
  SourceRows rows = array_rows(name, data, dtype);
  rows.balanced = balanced;
  return pack_source(builder, name, rows, first_row);
}

using Inputs = py::typing::Dict<py::str, py::array_t<float>>;
using Shapes = py::typing::Dict<py::str, py::typing::Tuple<py::int_, py::ellipsis>>;

Shapes slots(ModelBuilder& builder) {
  Shapes result;
  for (const auto& [name, slot] : builder.slots()) result[py::str(name)] = py::tuple(py::cast(slot.shape));
  return result;
}

// name -> (format, bytes) of every slot in packed form.
std::map<std::string, std::pair<std::string, int64_t>> packed_sizes(ModelBuilder& builder) {
  std::map<std::string, std::pair<std::string, int64_t>> result;
  for (const auto& [name, slot] : builder.slots()) {
    result[name] = {std::string(format_name(slot.matrix ? slot.matrix->format : Format::kF32)),
                    slot.packed_bytes(slot.rows())};
  }
  return result;
}

std::map<std::string, int64_t> memory(const Model& model) {
  std::map<std::string, int64_t> result;
  const ModelWeights& weights = model.weights();
  const int64_t embedding =
      weights.embed_tokens.bytes() + (model.config().tied_embeddings ? 0 : weights.lm_head.bytes());
  result["weights"] = model.weight_bytes() - embedding;
  result["embedding"] = weights.embedding_on_disk ? std::min(embedding, kResidentEmbeddingBytes) : embedding;
  // Free blocks between those that are in use belong to the running texts, if there are any.
  const int64_t kept = model.kv().kept_bytes(), all = model.kv().bytes();
  result["prefix_cache"] = kept == model.kv().used_bytes() ? all : kept;
  result["kv_cache"] = all - result["prefix_cache"];
  result["kv_cache_used"] = model.kv().used_bytes();
  result["adapters"] = model.adapter_bytes();
  result["kv_cache_per_token"] = model.kv().layout().bytes_per_token(false);
  result["kv_cache_per_window_token"] = model.kv().layout().bytes_per_token(true);
  return result;
}

// Returns float32 [texts, embedding_size], which is not normalised.
py::array_t<float> embeddings(const std::shared_ptr<Model>& model, const std::vector<std::vector<int32_t>>& texts,
                              const std::optional<std::shared_ptr<Adapter>>& adapter) {
  py::array_t<float> out({static_cast<int64_t>(texts.size()), model->config().embedding_size()});
  float* const to = out.mutable_data();
  std::atomic<bool> cancel{false};
  run_interruptibly([&] { embed(*model, texts, adapter.value_or(nullptr).get(), to, &cancel); },
                    [&] { cancel = true; });
  return out;
}

// The inputs of the matrices of each layer: "layers.N.q_proj" (also for k and v), "o_proj", "gate_proj" (and up) and
// "down_proj", with a row for each of `ids`, which are a text of their own.
Inputs projection_inputs(const std::shared_ptr<Model>& model, const std::vector<int32_t>& ids) {
  struct Tap {
    int64_t dim = 0;
    std::vector<float> values;
  };
  std::map<std::string, Tap> taps;
  const TapSink sink = [&](const std::string& name, const float* data, int64_t rows, int64_t dim) {
    constexpr std::string_view kEnd = ".input";
    if (!name.ends_with(kEnd)) return;
    Tap& tap = taps[name.substr(0, name.size() - kEnd.size())];
    tap.dim = dim;
    tap.values.insert(tap.values.end(), data, data + rows * dim);
  };
  Sequence sequence(model);
  {
    // All rows want logits, since the last layer leaves out the others. Few at a time, since logits are large.
    constexpr size_t kPiece = 64;
    const GilRelease release;
    const std::span<const int32_t> all(ids);
    for (size_t first = 0; first < all.size(); first += kPiece) {
      sequence.extend({all.subspan(first, std::min(kPiece, all.size() - first))}, LogitsWanted::kAll, &sink);
    }
  }
  Inputs result;
  for (const auto& [name, tap] : taps) {
    const int64_t rows = static_cast<int64_t>(tap.values.size()) / tap.dim;
    result[py::str(name)] = py::array_t<float>({rows, tap.dim}, tap.values.data());
  }
  return result;
}

bool fit_bf12(const SourceRows& rows, int threads) {
  constexpr int64_t kPieceBytes = 1 << 20;
  if (rows.type != SourceType::kBf16 || rows.shape.size() != 2) return false;
  const int64_t count = rows.shape[0], cols = rows.shape[1];
  if (count < 1 || cols < 1 || rows.offset < 0) return false;
  const int64_t step = std::max<int64_t>(kPieceBytes / (cols * 2) / kPanelRows, 1) * kPanelRows;
  ThreadPool pool(std::clamp(threads, 1, kMaxThreads), true);
  std::vector<std::vector<uint16_t>> pieces(static_cast<size_t>(pool.threads()));
  for (auto& piece : pieces) piece.resize(static_cast<size_t>(std::min(step, count) * cols));
  std::atomic<bool> fit = true;
  pool.run((count + step - 1) / step, [&](int64_t task, int thread) {
    if (!fit) return;
    const int64_t first = task * step, part = std::min(step, count - first);
    uint16_t* const piece = pieces[static_cast<size_t>(thread)].data();
    const bool read = read_fully(rows.descriptor, rows.offset + first * cols * 2, part * cols * 2, piece);
    if (!read || !fits_bf12(piece, part, cols)) fit = false;
  });
  return fit;
}

}  // namespace

Format weight_format(const std::string& name) {
  const auto format = format_from_name(name);
  if (!format) fail(ErrorCode::kInvalidRequest, "weight format '", name, "' is unknown; expected ", format_names());
  return *format;
}

const Adapter* adapter_of(const OptionalAdapter& adapter, const Model& model) {
  const Adapter* const found = adapter.value_or(nullptr).get();
  if (found) found->check_model(model);
  return found;
}

void register_model(py::module_& m) {
  m.def("check_device", &check_device, py::arg("name"),
        "Raises UnsupportedError if this build or this machine does not have the device.");
  m.attr("PASS_TEXTS") = kPassTexts;     // most texts that one pass embeds
  m.attr("PASS_TOKENS") = kChunkTokens;  // most tokens of these texts together
  m.attr("KV_BLOCK_TOKENS") = kKvBlockTokens;
  py::class_<Adapter, std::shared_ptr<Adapter>>(m, "Adapter", py::is_final(),
                                                "Low-rank corrections of a model's matrices; made by AdapterBuilder.")
      .def_property_readonly("bytes", &Adapter::bytes)
      .def_property_readonly(
          "digest",
          [](const Adapter& adapter) {
            std::string text;
            for (const uint8_t byte : adapter.digest()) {
              text.push_back("0123456789abcdef"[byte >> 4]);
              text.push_back("0123456789abcdef"[byte & 15]);
            }
            return text;
          },
          "What AdapterBuilder.finish() was given, in hexadecimal.");
  py::class_<Model, std::shared_ptr<Model>>(m, "Model", py::is_final(), "Weights ready to run; made by ModelBuilder.")
      .def_property_readonly("config", [](const Model& model) { return model.config(); })
      .def_property_readonly("threads", [](Model& model) { return model.backend().threads(); })
      .def_property_readonly("decode_threads", [](Model& model) { return model.backend().decode_threads(); })
      .def_property_readonly("kv_cache",
                             [](const Model& model) { return std::string(kv_format_name(model.kv().layout().format)); })
      .def_property_readonly("weights",
                             [](const Model& model) { return std::string(format_name(model.weight_format())); })
      .def_property_readonly("tier", [](Model& model) { return model.backend().tier(); })
      .def_property_readonly("closed", &Model::closed)
      .def("memory", &memory,
           "Bytes by kind: weights, embedding (and output head), caches of all sequences, adapters, cache per token, "
           "cache per token inside the sliding windows.")
      .def("adapter_scratch_bytes", &Model::adapter_scratch_bytes, py::arg("max_rank"),
           "What adapters of at most this rank add to the scratch of a forward pass.")
      .def("bytes_per_token", &Model::decode_bytes, py::kw_only(), py::arg("depth") = 0,
           "Bytes that one decode step reads after `depth` tokens.")
      .def("embed", &embeddings, py::arg("texts"), py::arg("adapter") = py::none(),
           "Embeddings of texts, each a list of token ids, that go through one forward pass together, not normalised: "
           "float32 [len(texts), embedding_size].")
      .def("projection_inputs", &projection_inputs, py::arg("ids"),
           "The inputs of the matrices of each layer for a text of its own: 'layers.0.q_proj' (also for k and v), "
           "'o_proj', 'gate_proj' (also for up) and 'down_proj' -> float32 [tokens, columns].")
      .def("close", &Model::close, py::call_guard<GilRelease>(), "Gives the memory back.");

  py::class_<SourceRows>(m, "FileRows", py::is_final(),
                         "Rows of a tensor in an open file, read as they are packed; dtype as for ModelBuilder.add().")
      .def(py::init([](int descriptor, int64_t offset, std::vector<int64_t> shape, const std::string& dtype,
                       const Scales& scales) {
             return SourceRows{std::move(shape), source_type("", dtype), nullptr, descriptor,
                               offset,           scales_of(scales)};
           }),
           py::kw_only(), py::arg("descriptor"), py::arg("offset"), py::arg("shape"), py::arg("dtype"),
           py::arg("scales") = py::none(),
           "`scales`: of integers (\"i8\", \"i4\", \"i2\", \"i4x32\") float32 [rows, scales of a row].")
      .def("fit_bf12", &fit_bf12, py::arg("threads"), py::call_guard<GilRelease>(),
           "Whether bf12 has room for this matrix in bf16. No if it cannot be read.");

  py::class_<ModelBuilder>(m, "ModelBuilder", py::is_final(), "Builds a Model tensor by tensor.")
      .def(py::init([](const ModelConfig& config, const std::string& weights, const std::string& embedding,
                       const std::string& kv_cache, int threads, bool allocate, int decode_threads,
                       const std::map<std::string, std::string>& formats, bool embedding_on_disk, bool fewer_threads,
                       const std::string& device, bool exact_batches, const TowerTensors& towers,
                       const std::optional<std::shared_ptr<Model>>& beside, const std::set<std::string>& rounded) {
             if (threads < 0 || threads > kMaxThreads) {
               fail(ErrorCode::kInvalidRequest, "threads is ", threads, ", expected 1 to ", kMaxThreads,
                    ", or 0 to plan only");
             }
             if (decode_threads < 0 || decode_threads > kMaxThreads) {
               fail(ErrorCode::kInvalidRequest, "decode_threads is ", decode_threads, ", expected 1 to ", kMaxThreads,
                    ", or 0 for as many as threads");
             }
             if (decode_threads == 0) decode_threads = threads;
             std::map<std::string, Format> own;
             for (const auto& [slot, format] : formats) own[slot] = weight_format(format);
             const bool exact_floats =  // f32 and w4a16 do not round activations, and then no other product rounds them
                 weight_format(weights) == Format::kF32 || weight_format(weights) == Format::kW4a16 ||
                 std::ranges::any_of(own, [](const auto& one) { return one.second == Format::kW4a16; });
             const BuildMode mode = threads == 0 ? BuildMode::kPlan
                                    : allocate   ? BuildMode::kAllocate
                                                 : BuildMode::kFiles;
             std::shared_ptr<Backend> backend;
             if (beside && *beside) {
               backend = (*beside)->shared_backend();
             } else {
               std::unique_ptr<Backend> made = make_backend(device, {std::max(threads, 1), std::max(decode_threads, 1),
                                                                     fewer_threads, exact_batches, exact_floats});
               if (guarded_memory()) made = make_guarded_backend(std::move(made));
               backend = std::move(made);
             }
             auto builder = std::make_unique<ModelBuilder>(
                 config, weight_format(weights), weight_format(embedding), kv_format(kv_cache), std::move(backend),
                 mode, std::move(own), embedding_on_disk, tower_specs(towers), rounded);
             if (beside && *beside && config.target_size > 0) builder->draft_for(*beside);
             return builder;
           }),
           py::kw_only(), py::arg("config"), py::arg("weights"), py::arg("embedding"), py::arg("kv_cache"),
           py::arg("threads"), py::arg("allocate") = true, py::arg("decode_threads") = 0,
           py::arg("formats") = std::map<std::string, std::string>(), py::arg("embedding_on_disk") = false,
           py::arg("fewer_threads") = false, py::arg("device") = "cpu", py::arg("exact_batches") = false,
           py::arg("towers") = TowerTensors(), py::arg("beside") = py::none(),
           py::arg("rounded") = std::set<std::string>(),
           "`rounded`: matrices whose inputs and outputs are rounded to 8 bits, by the two scales in the slot "
           "\"..._rounding\". `towers`: tensors of towers by name, (shape, kind) each. A \"matrix\" is packed in the "
           "format of the "
           "weights, an \"exact\" one in f32; \"floats\" stay in float32, and a \"norm\" too, with the offset of the "
           "model's norms. `beside`: a model for which this one is to be a drafter; it computes where that one does.")
      .def(
          "plan",
          [](ModelBuilder& builder, const std::string& table_type, int threads) {
            const MemoryPlan plan = builder.plan(source_type("embed_tokens_per_layer", table_type), threads);
            return std::map<std::string, int64_t>{{"weights", plan.weights},
                                                  {"embedding", plan.embedding},
                                                  {"kv_cache", plan.kv_cache},
                                                  {"activations", plan.activations},
                                                  {"on_disk", plan.on_disk}};
          },
          py::arg("table_type") = "bf16", py::arg("threads") = 0,
          "Bytes that the model will take, by use. `table_type`: that of the per-layer table in its file. `threads`: "
          "those "
          "of a pass; 0: the builder's, or as many as this machine would get.")
      .def("tensors", &slots, "Expected shape of every slot still to be filled or filled.")
      .def("packed_sizes", &packed_sizes, "(format, bytes) of every slot in packed form.")
      .def("add", &ModelBuilder::add, py::arg("name"), py::arg("rows"), py::arg("first_row") = 0,
           py::call_guard<GilRelease>())
      .def("pack", &pack_source, py::arg("name"), py::arg("rows"), py::arg("first_row") = 0)
      .def("pack", &pack, py::arg("name"), py::arg("data"), py::arg("dtype"), py::arg("first_row") = 0,
           py::arg("balanced") = false, "Packs what add() would take into bytes for a file. The slot stays empty.")
      .def("map_file", &ModelBuilder::map_file, py::arg("descriptor"), py::arg("path"),
           "Maps the open file for use_packed().")
      .def("use_packed", &ModelBuilder::use_packed, py::arg("name"), py::arg("offset"), py::arg("bytes"),
           "Fills a slot with the packed form that lies in the mapped file, used in place.")
      .def("add", &add, py::arg("name"), py::arg("data"), py::arg("dtype"), py::arg("first_row") = 0,
           py::arg("balanced") = false,
           "Packs a tensor, or the next rows of one: a float32 array tagged 'f32', a uint16 array tagged 'bf16' or "
           "'f16', or a uint8 array of GGUF's blocks tagged with their type in lower case, 'q4_0'. "
           "`balanced`: its columns are multiplied by their balance already.")
      .def(
          "set_per_layer_table",
          [](ModelBuilder& builder, int descriptor, const std::string& path, int64_t offset, int64_t rows, int64_t cols,
             const std::string& dtype, const std::vector<std::pair<int64_t, int64_t>>& kept, const Scales& scales) {
            std::vector<RowTable::Columns> columns;
            for (const auto& [first, count] : kept) columns.push_back({first, count});
            builder.set_per_layer_table(RowTable(descriptor, path, offset, rows, cols,
                                                 source_type("embed_tokens_per_layer", dtype), std::move(columns),
                                                 scales_of(scales)));
          },
          py::kw_only(), py::arg("descriptor"), py::arg("path"), py::arg("offset"), py::arg("rows"), py::arg("cols"),
          py::arg("dtype"), py::arg("kept") = std::vector<std::pair<int64_t, int64_t>>(),
          py::arg("scales") = py::none(),
          "The per-layer embedding table: it stays in its file, which is open, and is read by row; of `cols` values in "
          "a row only the "
          "runs `kept`, each (first, count), all if empty. `scales` as in FileRows.")
      .def("set_token_order", &ModelBuilder::set_token_order, py::arg("ids"),
           "Sets the token of each row of \"embed_tokens\", for an assistant with centroids.")
      .def("add_random", &add_random, py::kw_only(), py::arg("seed"), py::arg("done") = py::none(),
           "Fills every empty slot with random values of trained weights' size. done(bytes) is called after each piece "
           "of their packed form; what it or a signal handler raises ends it.")
      .def(
          "finish", [](ModelBuilder& builder) { return std::shared_ptr<Model>(builder.finish()); },
          "The model; the builder is spent afterwards.");

  py::class_<AdapterBuilder>(m, "AdapterBuilder", py::is_final(), "Builds an Adapter of a model, matrix by matrix.")
      .def(py::init<std::shared_ptr<Model>>(), py::arg("model").none(false))
      .def("add", &add_low_rank, py::arg("name"), py::kw_only(), py::arg("a"), py::arg("a_dtype"), py::arg("b"),
           py::arg("b_dtype"), py::arg("scale"), py::arg("magnitudes") = std::vector<float>(),
           py::arg("bias") = std::vector<float>(),
           "Packs A [rank, cols] and B [rows, rank] of a matrix; arrays and their tags as in ModelBuilder.add. "
           "`magnitudes` [rows] are DoRA's, empty for plain LoRA; `bias` [rows] is added to B (A x), or empty.")
      .def(
          "add_rows",
          [](AdapterBuilder& builder, const std::string& name, const SourceRows& rows,
             const std::vector<int32_t>& ids) {
            const GilRelease release;
            builder.add_rows(name, rows, ids);
          },
          py::arg("name"), py::arg("rows"), py::kw_only(), py::arg("ids") = std::vector<int32_t>(),
          "The next rows of the embedding table (\"embed_tokens\") or the output head (\"lm_head\") that the adapter "
          "has "
          "instead of the model's: those of the tokens `ids`, ascending, or all of them. A multiple of 16 rows, but "
          "for "
          "the last ones.")
      .def(
          "add_rows",
          [](AdapterBuilder& builder, const std::string& name, const py::array& data, const std::string& dtype,
             const std::vector<int32_t>& ids) {
            const SourceRows rows = array_rows(name, data, dtype);
            const GilRelease release;
            builder.add_rows(name, rows, ids);
          },
          py::arg("name"), py::arg("data"), py::arg("dtype"), py::kw_only(), py::arg("ids") = std::vector<int32_t>(),
          "The same for rows in an array.")
      .def("add_norm", &AdapterBuilder::add_norm, py::arg("name"), py::arg("weight"), py::call_guard<GilRelease>(),
           "Sets a weight that replaces that of a norm, in the form of the model's files.")
      .def(
          "set_per_layer_table",
          [](AdapterBuilder& builder, int descriptor, const std::string& path, int64_t offset, int64_t rows,
             int64_t cols, const std::string& dtype, const std::vector<int32_t>& ids) {
            const GilRelease release;
            builder.set_per_layer_table(
                RowTable(descriptor, path, offset, rows, cols, source_type("embed_tokens_per_layer", dtype)), ids);
          },
          py::kw_only(), py::arg("descriptor"), py::arg("path"), py::arg("offset"), py::arg("rows"), py::arg("cols"),
          py::arg("dtype"), py::arg("ids") = std::vector<int32_t>(),
          "Sets a table of per-layer embeddings that replaces the model's, or only its rows of the tokens `ids`; "
          "other arguments as in ModelBuilder.")
      .def(
          "weight",
          [](AdapterBuilder& builder, const std::string& name) {
            std::vector<float> values;
            int64_t rows = 0, cols = 0;
            {
              const GilRelease release;
              values = builder.weight(name, &rows, &cols);
            }
            return py::array_t<float>({rows, cols}, values.data());
          },
          py::arg("name"), "A matrix of the model as float32.")
      .def("share_rows", &AdapterBuilder::share_rows,
           "The output head takes the rows that replace those of the embedding table.")
      .def("rows_bytes", &AdapterBuilder::rows_bytes, py::arg("name"), py::arg("count"),
           "Bytes that add_rows() keeps for `count` rows; 0 for a name that it does not take.")
      .def("tower_bytes", &AdapterBuilder::tower_bytes, py::arg("name"), py::arg("rank"),
           "Further bytes of a tower's pass for a term of this rank, a bias included; 0 for a matrix of the text "
           "model.")
      .def(
          "finish",
          [](AdapterBuilder& builder, const py::bytes& digest) { return builder.finish(digest_of(digest, "digest")); },
          py::arg("digest") = py::bytes(),
          "The adapter; the builder is spent afterwards. `digest`: 32 bytes of its content, by which a prefix cache on "
          "disk knows it.");
}

}  // namespace gemlet::bindings
