#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/tokens.h"
#include "engine/embedding.h"
#include "engine/sampler.h"
#include "engine/sequence.h"
#include "model/kv_table.h"
#include "model/rope.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

using Ids = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Taps = py::typing::Dict<py::str, py::array_t<float>>;

// Every tap of a fresh context, rows of all chunks one after the other.
Taps taps(const std::shared_ptr<Model>& model, const Ids& ids, const std::string& wanted_logits,
          const Tokens::SoftArrays& soft_rows, const Tokens::Spans& spans) {
  const LogitsWanted wanted = logits_wanted(wanted_logits);
  struct Tap {
    int64_t dim;
    std::vector<float> values;
  };
  std::map<std::string, Tap> collected;
  const TapSink sink = [&](const std::string& name, const float* data, int64_t rows, int64_t dim) {
    Tap& tap = collected[name];
    tap.dim = dim;
    tap.values.insert(tap.values.end(), data, data + rows * dim);
  };
  const std::span<const int32_t> span(ids.data(), static_cast<size_t>(ids.size()));
  if (model->config().bidirectional) {
    const std::vector<int32_t> text(span.begin(), span.end());
    std::vector<float> embedding(static_cast<size_t>(model->config().embedding_size()));
    const GilRelease release;
    embed(*model, {&text, 1}, nullptr, embedding.data(), nullptr, &sink);
    collected["embedding"] = {model->config().embedding_size(), embedding};
  } else {
    Sequence sequence(model);
    const Tokens tokens(ids, soft_rows, spans, model->config().hidden_size);
    const GilRelease release;
    sequence.extend(tokens.run(), wanted, &sink);
    collected["logits"] = {model->config().vocab_size, sequence.logits()};
  }
  Taps result;
  for (const auto& [name, tap] : collected) {
    const int64_t rows = static_cast<int64_t>(tap.values.size()) / tap.dim;
    result[py::str(name)] = py::array_t<float>({rows, tap.dim}, tap.values.data());
  }
  return result;
}

std::pair<py::array_t<float>, py::array_t<float>> rope_table(const LayerConfig& layer,
                                                             const std::vector<int64_t>& positions) {
  const std::vector<float> frequencies = rope_frequencies(layer);
  const std::vector<py::ssize_t> shape = {static_cast<py::ssize_t>(positions.size()),
                                          static_cast<py::ssize_t>(frequencies.size())};
  py::array_t<float> cosines(shape), sines(shape);
  make_cpu_backend({})->rope_angles(frequencies, positions, cosines.mutable_data(), sines.mutable_data());
  return {std::move(cosines), std::move(sines)};
}

// The logits of fresh contexts that go through one forward pass together, each with its adapter or none.
std::vector<py::array_t<float>> batch_logits(const std::shared_ptr<Model>& model,
                                             const std::vector<std::vector<int32_t>>& ids,
                                             const std::vector<std::optional<std::shared_ptr<Adapter>>>& adapters) {
  if (ids.size() != adapters.size()) {
    fail(ErrorCode::kInvalidRequest, "there are ", adapters.size(), " adapters, expected one, or None, for each of ",
         ids.size(), " contexts");
  }
  std::vector<KvTable> tables;
  Batch batch;
  tables.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const Adapter* const adapter = adapters[i] ? adapters[i]->get() : nullptr;
    if (adapter) adapter->check_model(*model);
    batch.segments.push_back({&tables.emplace_back(model->kv()), {ids[i]}, LogitsWanted::kAll, adapter});
  }
  const int64_t vocab = model->config().vocab_size;
  py::array_t<float> logits({batch.rows(), vocab});
  batch.logits = logits.mutable_data();
  {
    const GilRelease release;
    (void)model->forward(batch);  // nobody cancels it
  }
  std::vector<py::array_t<float>> result;
  int64_t row = 0;
  for (const Segment& segment : batch.segments) {
    result.push_back(logits[py::slice(row, row + segment.rows(), 1)].cast<py::array_t<float>>());
    row += segment.rows();
  }
  return result;
}

// The most likely draft tokens of an assistant after the ids, and their logits [count, vocab]. The target has not
// computed the last id.
std::pair<std::vector<int32_t>, py::array_t<float>> assistant_logits(Model& target, Model& assistant,
                                                                     const std::vector<int32_t>& ids, int64_t count) {
  const int64_t vocab = target.config().vocab_size, size = target.config().hidden_size;
  if (ids.size() < 2) fail(ErrorCode::kInvalidRequest, "expected two ids or more");
  py::array_t<float> logits({count, vocab});
  float* const all = logits.mutable_data();
  std::vector<int32_t> guessed;
  const GilRelease release;
  KvTable table(target.kv(), true);
  std::vector<float> row(static_cast<size_t>(vocab)), state(static_cast<size_t>(size)), next = state;
  Batch read;
  read.segments.push_back({&table, {std::span(ids).first(ids.size() - 1)}, LogitsWanted::kLast});
  read.logits = row.data();
  read.states = state.data();
  (void)target.forward(read);
  int32_t last = ids.back();
  target.run(1, [&](Backend&) {
    for (int64_t i = 0; i < count; ++i) {
      Batch batch;
      batch.segments.push_back({&table, {{&last, 1}}, LogitsWanted::kLast});
      batch.segments.back().state = state.data();
      batch.logits = all + i * vocab;
      batch.states = next.data();
      batch.target = &target;
      (void)assistant.forward(batch);
      state = next;
      last = static_cast<int32_t>(std::max_element(batch.logits, batch.logits + vocab) - batch.logits);
      guessed.push_back(last);
    }
  });
  return {std::move(guessed), std::move(logits)};
}

}  // namespace

bool& guarded_memory() {
  static bool guarded = false;
  return guarded;
}

void register_testing(py::module_& testing) {
  testing.def(
      "weight_formats",
      [] {
#define GEMLET_FORMAT_NAME(id, name) #name,
        return std::vector<std::string>{GEMLET_FORMATS(GEMLET_FORMAT_NAME)};
#undef GEMLET_FORMAT_NAME
      },
      "The formats of weights in memory.");
  testing.def(
      "kv_formats",
      [] {
#define GEMLET_KV_FORMAT_NAME(id, name, bytes) #name,
        return std::vector<std::string>{GEMLET_KV_FORMATS(GEMLET_KV_FORMAT_NAME)};
#undef GEMLET_KV_FORMAT_NAME
      },
      "The formats of the KV cache.");
  testing.def(
      "guard_memory", [] { guarded_memory() = true; },
      "Models that are made from now on keep their memory closed while no operation of the backend runs. The process "
      "crashes when anything else reads or writes there.");
  testing.def(
      "peek", [](const Model& model) { return int{*model.weights().embed_tokens.data}; }, py::arg("model"),
      "The first byte of a model's embedding, read without the backend.");
  testing.def("parameter_count", &Model::parameter_count, py::arg("model"));
  testing.def("bytes_read", &Model::bytes_read, py::arg("model"),
              "Bytes of matrices, keys and values that all forward passes so far have read.");
  testing.def("cache_bytes", &Sequence::cache_bytes, py::arg("sequence"), py::call_guard<GilRelease>(),
              "Bytes of the blocks with the keys and values of a context.");
  testing.def(
      "taps", &taps, py::arg("model"), py::arg("ids"), py::arg("logits") = "all",
      py::arg("soft_rows") = Tokens::SoftArrays(), py::arg("spans") = Tokens::Spans(),
      "Intermediate activations of a fresh context by name, float32 [rows, dim]: as many rows as the pass computed "
      "there, which are all ids where `logits` is 'all'.");
  testing.def("batch_logits", &batch_logits, py::arg("model"), py::arg("ids"), py::arg("adapters"),
              "Logits of fresh contexts that go through one forward pass together, float32 [len(ids[i]), vocab] each.");
  testing.def("assistant_logits", &assistant_logits, py::arg("target"), py::arg("assistant"), py::arg("ids"),
              py::arg("count"),
              "The most likely draft tokens of an assistant after some ids, one by one, and its logits, "
              "float32 [count, vocab].");
  testing.def("rope_table", &rope_table, py::arg("layer"), py::arg("positions"),
              "(cosines, sines), float32 [positions, head_dim / 2], of the angles by which a layer turns queries and "
              "keys.");
  testing.def(
      "limit_kv_cache", [](Model& model, int64_t bytes) { model.kv().set_limit(bytes); }, py::arg("model"),
      py::arg("bytes"), "From now on the caches of all contexts together take no memory that would exceed this.");
  using FloatRow = py::array_t<float, py::array::c_style | py::array::forcecast>;
  testing.def(
      "distribution",
      [](Sampler& sampler, const FloatRow& row, const TokenIds& history) {
        return sampler.distribution({row.data(), static_cast<size_t>(row.size())}, token_ids(history));
      },
      py::arg("sampler").none(false), py::arg("logits"), py::arg("history"),
      "What Sampler.sample() draws from: pairs (token id, probability).");
  testing.def(
      "prefix", [](const Sequence& sequence, int64_t blocks) { return sequence.prefix(blocks); }, py::arg("sequence"),
      py::arg("blocks"), py::call_guard<GilRelease>(),
      "Another context with the first blocks * 64 tokens, which shares the cache of them.");
}

}  // namespace gemlet::bindings
