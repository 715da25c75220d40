#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/sampler.h"
#include "engine/sequence.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

using Ids = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::span<const int32_t> span_of(const Ids& ids) { return {ids.data(), static_cast<size_t>(ids.size())}; }

void extend(Sequence& sequence, const Ids& ids, const std::string& logits) {
  LogitsWanted wanted;
  if (logits == "none") {
    wanted = LogitsWanted::kNone;
  } else if (logits == "last") {
    wanted = LogitsWanted::kLast;
  } else if (logits == "all") {
    wanted = LogitsWanted::kAll;
  } else {
    fail(ErrorCode::kInvalidRequest, "logits is '", logits, "', expected 'none', 'last' or 'all'");
  }
  const py::gil_scoped_release release;
  sequence.extend(span_of(ids), wanted);
}

}  // namespace

void register_engine(py::module_& m) {
  py::class_<Sampler>(m, "Sampler", py::is_final(), "Chooses tokens from logits; holds the random state.")
      .def(py::init([](double temperature, int64_t top_k, double top_p, double min_p, double repetition_penalty, uint64_t seed,
                       int64_t vocab_limit) {
             return Sampler({temperature, top_k, top_p, min_p, repetition_penalty, seed, vocab_limit});
           }),
           py::kw_only(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_p"),
           py::arg("repetition_penalty"), py::arg("seed"), py::arg("vocab_limit") = 0)
      .def(
          "sample",
          [](Sampler& sampler, const Floats& logits, const Ids& history) {
            return sampler.sample({logits.data(), static_cast<size_t>(logits.size())}, span_of(history));
          },
          py::arg("logits"), py::arg("history"), "Next token id from logits [vocab]; history feeds the repetition penalty.");

  py::class_<Sequence>(m, "TokenSequence", py::is_final(), "One context: its tokens and their keys and values.")
      .def(py::init<std::shared_ptr<Model>>(), py::arg("model"))
      .def_property_readonly("length", &Sequence::length)
      .def_property_readonly("token_ids", &Sequence::token_ids)
      .def_property_readonly("cache_bytes", &Sequence::cache_bytes)
      .def("extend", &extend, py::arg("ids"), py::kw_only(), py::arg("logits") = "last",
           "Appends tokens; keeps the logits of none, the last or all of them.")
      .def(
          "logits",
          [](const Sequence& sequence) {
            return py::array_t<float>({sequence.logits_rows(), sequence.model().config().vocab_size}, sequence.logits());
          },
          "Logits of the last extend, float32 [rows, vocab].")
      .def("sample", &Sequence::sample, py::arg("sampler"), py::call_guard<py::gil_scoped_release>(),
           "Next token id from the last row of logits.")
      .def("cancel", &Sequence::cancel, "From another thread: the running extend raises CancelledError.")
      .def("close", &Sequence::close, "Gives the cache back.");
}

}  // namespace gemlet::bindings
