#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/logprobs.h"
#include "bindings/tokens.h"
#include "engine/repetition.h"
#include "engine/sampler.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Ids = std::vector<int32_t>;

LogprobPairs logprobs(const Floats& rows, const TokenIds& chosen, size_t top) {
  const Ids ids = token_ids(chosen);
  if (rows.ndim() != 2 || static_cast<size_t>(rows.shape(0)) != ids.size()) {
    fail(ErrorCode::kInvalidRequest, "logits has ", rows.ndim(), " dimensions, expected a row for each of ", ids.size(),
         " ids");
  }
  const auto vocab = static_cast<size_t>(rows.shape(1));
  const float* const data = rows.data();
  std::vector<Logprobs> found;
  {
    const GilRelease release;
    LogprobReader reader;
    for (size_t i = 0; i < ids.size(); ++i) found.push_back(reader.read({data + i * vocab, vocab}, ids[i], top));
  }
  return pairs_of(found);
}

}  // namespace

void register_sampler(py::module_& m) {
  py::class_<SequenceBreakers, std::shared_ptr<SequenceBreakers>>(
      m, "SequenceBreakers", py::is_final(), "Short sequences of tokens across which a repetition does not count.")
      .def(py::init([](const std::vector<std::pair<Ids, Ids>>& groups) {
             std::vector<SequenceBreakers::Group> made;
             for (const auto& [heads, tail] : groups) made.push_back({heads, tail});
             return std::make_shared<SequenceBreakers>(std::move(made));
           }),
           py::arg("groups"),
           "Pairs (heads, tail): each of the ids `heads` followed by the ids `tail` is one of the sequences.");

  py::class_<Sampler>(m, "Sampler", py::is_final(), "Chooses tokens from logits, and keeps the random state.")
      .def(py::init([](double temperature, int64_t top_k, double top_p, double min_p, double typical_p,
                       double repetition_penalty, double frequency_penalty, double presence_penalty,
                       double dry_multiplier, double dry_base, int64_t dry_allowed_length,
                       const std::optional<std::shared_ptr<SequenceBreakers>>& dry_breakers, int64_t no_repeat_ngram,
                       std::vector<std::pair<int32_t, float>> logit_bias, int64_t min_tokens, Ids end_ids,
                       Ids suppressed, int64_t vocab_limit, uint64_t seed, int64_t prompt_tokens) {
             SamplerConfig config;
             config.logit_bias = std::move(logit_bias);
             config.repetition_penalty = repetition_penalty;
             config.frequency_penalty = frequency_penalty;
             config.presence_penalty = presence_penalty;
             config.dry = {dry_multiplier, dry_base, dry_allowed_length, dry_breakers.value_or(nullptr)};
             config.no_repeat_ngram = no_repeat_ngram;
             config.min_tokens = min_tokens;
             config.end_ids = std::move(end_ids);
             config.suppressed = std::move(suppressed);
             config.vocab_limit = vocab_limit;
             config.temperature = temperature;
             config.top_k = top_k;
             config.top_p = top_p;
             config.min_p = min_p;
             config.typical_p = typical_p;
             config.seed = seed;
             config.prompt_tokens = prompt_tokens;
             return std::make_unique<Sampler>(config);
           }),
           py::kw_only(), py::arg("temperature"), py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("min_p") = 0.0,
           py::arg("typical_p") = 1.0, py::arg("repetition_penalty") = 1.0, py::arg("frequency_penalty") = 0.0,
           py::arg("presence_penalty") = 0.0, py::arg("dry_multiplier") = 0.0, py::arg("dry_base") = 1.75,
           py::arg("dry_allowed_length") = 2, py::arg("dry_breakers") = py::none(), py::arg("no_repeat_ngram") = 0,
           py::arg("logit_bias") = std::vector<std::pair<int32_t, float>>(), py::arg("min_tokens") = 0,
           py::arg("end_ids") = Ids(), py::arg("suppressed") = Ids(), py::arg("vocab_limit") = 0, py::arg("seed"),
           py::arg("prompt_tokens") = 0)
      .def(
          "sample",
          [](Sampler& sampler, const Floats& row, const TokenIds& history) {
            return sampler.sample({row.data(), static_cast<size_t>(row.size())}, token_ids(history));
          },
          py::arg("logits"), py::arg("history"),
          "The next token id from logits [vocab]. `history` is the text so far: the ids of the prompt, of which there "
          "are `prompt_tokens`, and those that were generated.");

  m.def(
      "logprobs", &logprobs, py::arg("logits"), py::arg("ids"), py::arg("top"),
      "For each row of logits [n, vocab] the log probability of a token id [n], and pairs (token id, log probability) "
      "of the `top` likeliest.");
}

}  // namespace gemlet::bindings
