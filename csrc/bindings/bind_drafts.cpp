#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "engine/drafts.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

// Simulates a model that writes the given texts, in steps that take the given times.
class Simulation {
 public:
  Simulation(const std::vector<std::vector<int32_t>>& texts, const std::vector<size_t>& prompts,
             const py::object& seconds_of)
      : seconds_of_(seconds_of) {
    for (size_t i = 0; i < texts.size(); ++i) {
      texts_.emplace_back(texts[i], prompts.at(i));
    }
  }

  // Returns the time in seconds at which each text is done, and the numbers of draft tokens and of accepted ones.
  std::tuple<std::vector<double>, int64_t, int64_t> run() {
    for (;;) {
      std::vector<Text*> live;
      for (Text& text : texts_) {
        if (text.written < text.ids.size()) live.push_back(&text);
      }
      if (live.empty()) break;
      step(live);
    }
    std::vector<double> ends;
    for (const Text& text : texts_) ends.push_back(text.end);
    return {ends, drafted_, accepted_};
  }

 private:
  struct Text {
    Text(std::span<const int32_t> all, size_t prompt)
        : ids(all), written(prompt), drafts(std::make_unique<Drafts>(std::make_unique<PromptLookup>())) {}
    std::span<const int32_t> ids;
    size_t written;
    std::unique_ptr<Drafts> drafts;
    double end = 0;
  };

  void step(const std::vector<Text*>& live) {
    const auto rows = static_cast<int64_t>(live.size());
    std::vector<Drafts*> drafts;
    for (Text* const text : live) {
      const auto most =
          std::min<int64_t>(StepTimes::kMostRows - 1, static_cast<int64_t>(text->ids.size() - text->written) - 1);
      text->drafts->propose(text->ids.first(text->written), most);
      drafts.push_back(text->drafts.get());
    }
    const int64_t drafted = choose_drafts(drafts, rows, StepTimes::kMostRows - 1, times_).count;
    const auto seconds = seconds_of_(rows + drafted).cast<double>();
    now_ += seconds;
    times_.add(rows + drafted, drafted, 0, seconds);
    const double slowed = drafted > 0 ? times_.cost(rows + drafted, rows) : 1;
    for (Text* const text : live) {
      int64_t right = 0;
      while (text->drafts->check(right, text->ids[text->written + static_cast<size_t>(right)])) ++right;
      text->drafts->account(slowed, 1 + right);
      text->written += 1 + static_cast<size_t>(right);
      if (text->written == text->ids.size()) text->end = now_;
      accepted_ += right;
    }
    drafted_ += drafted;
  }

  std::vector<Text> texts_;
  const py::object seconds_of_;
  StepTimes times_;
  double now_ = 0;
  int64_t drafted_ = 0, accepted_ = 0;
};

}  // namespace

void register_drafts(py::module_& testing) {
  testing.def(
      "guess",
      [](const std::vector<int32_t>& ids, const std::vector<size_t>& lengths, int64_t most) {
        PromptLookup lookup;
        std::vector<std::vector<int32_t>> guesses;
        for (const size_t length : lengths) {
          guesses.push_back(lookup.propose(std::span(ids).first(length), most).ids);
        }
        return guesses;
      },
      py::arg("ids"), py::arg("lengths"), py::arg("most"),
      "The draft tokens that PromptLookup proposes after the first `lengths[i]` ids of a text, for each length.");
  testing.def(
      "write_with_drafts",
      [](const std::vector<std::vector<int32_t>>& texts, const std::vector<size_t>& prompts,
         const py::object& seconds_of) { return Simulation(texts, prompts, seconds_of).run(); },
      py::arg("texts"), py::arg("prompts"), py::arg("seconds_of"),
      "Simulates an engine that generates these texts together with draft tokens. The first `prompts[i]` tokens of a "
      "text are its prompt. seconds_of(rows): the time of a step. Returns the seconds until the end of each text, the "
      "number of draft tokens and the number of accepted ones.");
}

}  // namespace gemlet::bindings
