#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <memory>
#include <optional>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/interruptible.h"
#include "bindings/tokens.h"
#include "bindings/turn.h"
#include "engine/sequence.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

py::array_t<float> logits(const Sequence& sequence) {
  auto values = std::make_unique<std::vector<float>>();
  {
    const GilRelease release;
    *values = sequence.logits();
  }
  const int64_t vocab = sequence.model().config().vocab_size;
  const int64_t rows = static_cast<int64_t>(values->size()) / vocab;
  float* const data = values->data();
  const py::capsule owner(values.release(), [](void* pointer) { delete static_cast<std::vector<float>*>(pointer); });
  return py::array_t<float>({rows, vocab}, data, owner);
}

// A few hundred tokens take a large model many seconds, and so may one token if the weights are gigabytes or if other
// threads use the model.
void extend(Sequence& sequence, const TokenIds& ids, const std::string& wanted_logits,
            const Tokens::SoftArrays& soft_rows, const Tokens::Spans& spans) {
  constexpr int64_t kFewTokens = 8;
  constexpr int64_t kManyBytes = int64_t{1} << 30;
  const LogitsWanted wanted = logits_wanted(wanted_logits);
  const Model& model = sequence.model();
  const Tokens tokens(ids, soft_rows, spans, model.config().hidden_size);
  const auto work = [&] { sequence.extend(tokens.run(), wanted); };
  if (tokens.run().rows() > kFewTokens || model.decode_bytes(0) > kManyBytes || model.busy()) {
    return run_interruptibly(work, [&] { sequence.cancel(); });
  }
  const GilRelease release;
  work();
}

}  // namespace

LogitsWanted logits_wanted(const std::string& name) {
  if (name == "none") return LogitsWanted::kNone;
  if (name == "last") return LogitsWanted::kLast;
  if (name == "all") return LogitsWanted::kAll;
  fail(ErrorCode::kInvalidRequest, "logits is '", name, "', expected 'none', 'last' or 'all'");
}

void register_engine(py::module_& m) {
  using release_gil = py::call_guard<GilRelease>;
  py::class_<Turn>(m, "Turn", py::is_final(),
                   "A lock: `with turn as first:`, where `first` is False if this thread has it already.")
      .def(py::init<>())
      .def("__enter__", &Turn::enter)
      .def(
          "__exit__", [](Turn& turn, const py::object&, const py::object&, const py::object&) { turn.leave(); },
          py::arg("kind"), py::arg("error"), py::arg("traceback"));

  py::class_<Sequence>(m, "TokenSequence", py::is_final(), "One context: its tokens and their keys and values.")
      .def(py::init([](const std::shared_ptr<Model>& model, const std::optional<std::shared_ptr<Adapter>>& adapter) {
             return std::make_unique<Sequence>(model, adapter.value_or(nullptr));
           }),
           py::arg("model").none(false), py::arg("adapter") = py::none())
      .def_property_readonly("length", py::cpp_function(&Sequence::length, release_gil()))
      .def_property_readonly("token_ids", py::cpp_function(&Sequence::token_ids, release_gil()))
      .def("extend", &extend, py::arg("ids"), py::kw_only(), py::arg("logits") = "last",
           py::arg("soft_rows") = Tokens::SoftArrays(), py::arg("spans") = Tokens::Spans(),
           "Appends tokens and keeps the logits of none, of the last or of all of them. `soft_rows`: pairs of a first "
           "token and float32 [rows, hidden_size], which replace the scaled embeddings there. `spans`: pairs (begin, "
           "end) of tokens that see each other in both directions, in the layers that do this.")
      .def("fork", &Sequence::fork, release_gil(),
           "Another context with the same tokens and logits, which shares the cache of them.")
      .def("logits", &logits, "The logits of the last extend, float32 [rows, vocab].")
      .def("sample", &Sequence::sample, py::arg("sampler").none(false), release_gil(),
           "The next token id from the last row of logits.")
      .def("cancel", &Sequence::cancel, "Makes a running extend, which is in another thread, raise CancelledError.")
      .def("close", &Sequence::close, release_gil(), "Frees the cache.");
}

}  // namespace gemlet::bindings
