// Forward passes over several contexts, for tests and benchmarks.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <atomic>
#include <memory>
#include <optional>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/tokens.h"
#include "model/adapter.h"
#include "model/kv_table.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

struct Context {
  Context(std::shared_ptr<Model> its_model, std::shared_ptr<const Adapter> its_adapter)
      : model(std::move(its_model)), adapter(std::move(its_adapter)), kv(model->kv()) {
    if (adapter) adapter->check_model(*model);
  }
  std::shared_ptr<Model> model;
  std::shared_ptr<const Adapter> adapter;
  KvTable kv;
};

// New tokens of a context. It is cancelled when the pass has made the tap `cancel_at`; "start": before the pass.
struct Step {
  std::shared_ptr<Context> context;
  Tokens tokens;
  LogitsWanted wanted;
  std::string cancel_at;
  std::atomic<bool> cancel{false};

  Step(std::shared_ptr<Context> its_context, Tokens its_tokens, LogitsWanted its_wanted, std::string its_cancel_at)
      : context(std::move(its_context)),
        tokens(std::move(its_tokens)),
        wanted(its_wanted),
        cancel_at(std::move(its_cancel_at)) {}
};

using Logits = py::array_t<float>;

// The logits that each step wants, float32 [rows, vocab]; None if it was cancelled.
std::vector<std::optional<Logits>> forward(const std::vector<std::shared_ptr<Step>>& steps) {
  if (steps.empty()) fail(ErrorCode::kInvalidRequest, "give at least one step");
  const std::shared_ptr<Model> model = steps[0]->context->model;
  Batch batch;
  int64_t rows = 0;
  bool with_taps = false;
  for (const std::shared_ptr<Step>& step : steps) {
    if (step->context->model != model)
      fail(ErrorCode::kInvalidRequest, "the contexts belong to different models, expected one");
    step->cancel = step->cancel_at == "start";
    with_taps |= !step->cancel_at.empty();
    Segment segment = {&step->context->kv, step->tokens.run(), step->wanted, step->context->adapter.get(),
                       &step->cancel};
    rows += segment.logits_rows();
    batch.segments.push_back(segment);
  }
  const TapSink cancel_steps = [&](const std::string& name, const float*, int64_t, int64_t) {
    for (const std::shared_ptr<Step>& step : steps) {
      if (step->cancel_at == name) step->cancel = true;
    }
  };
  if (with_taps) batch.taps = &cancel_steps;
  Logits logits({rows, model->config().vocab_size});
  batch.logits = logits.mutable_data();
  std::vector<bool> cancelled;
  {
    const GilRelease release;
    cancelled = model->forward(batch);
  }
  std::vector<std::optional<Logits>> result;
  int64_t row = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const int64_t end = row + batch.segments[i].logits_rows();
    result.emplace_back();
    if (!cancelled[i]) result.back() = logits[py::slice(row, end, 1)].cast<Logits>();
    row = end;
  }
  return result;
}

}  // namespace

void register_batch(py::module_& testing) {
  py::class_<Context, std::shared_ptr<Context>>(testing, "Context", py::is_final(),
                                                "The keys and values of one sequence, which forward() advances.")
      .def(py::init([](const std::shared_ptr<Model>& model, const std::optional<std::shared_ptr<Adapter>>& adapter) {
             return std::make_shared<Context>(model, adapter.value_or(nullptr));
           }),
           py::arg("model").none(false), py::arg("adapter") = py::none())
      .def_property_readonly("length", [](const Context& context) { return context.kv.length(); })
      .def_property_readonly("cache_bytes", [](const Context& context) { return context.kv.bytes(); });

  py::class_<Step, std::shared_ptr<Step>>(testing, "Step", py::is_final(), "New tokens of a context, for forward().")
      .def(py::init([](const std::shared_ptr<Context>& context, const TokenIds& ids, const std::string& logits,
                       const Tokens::SoftArrays& soft_rows, const Tokens::Spans& spans, const std::string& cancel_at) {
             Tokens tokens(ids, soft_rows, spans, context->model->config().hidden_size);
             return std::make_shared<Step>(context, std::move(tokens), logits_wanted(logits), cancel_at);
           }),
           py::arg("context").none(false), py::arg("ids"), py::kw_only(), py::arg("logits") = "last",
           py::arg("soft_rows") = Tokens::SoftArrays(), py::arg("spans") = Tokens::Spans(), py::arg("cancel_at") = "");

  testing.def("forward", &forward, py::arg("steps"),
              "One pass over several contexts: the logits that each step wants, float32 [rows, vocab], or None "
              "if it was cancelled. A step is cancelled when the pass makes the tap that its `cancel_at` names; "
              "'start': before the pass.");
}

}  // namespace gemlet::bindings
