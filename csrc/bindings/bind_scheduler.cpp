#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/scheduler.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

using Plan = std::vector<std::pair<uint64_t, int64_t>>;  // number of a request, and its tokens in a step

// Requests that come at given times, in steps that take given times. Nothing is computed.
class Steps {
 public:
  Steps(std::shared_ptr<Model> model, const py::object& seconds_of)
      : model_(std::move(model)), seconds_of_(seconds_of) {}

  // The end of each step, in seconds, and what it does. A request is its time of arrival, the tokens of its prompt and
  // the tokens that it writes.
  std::vector<std::pair<double, Plan>> run(const std::vector<std::tuple<double, int64_t, int64_t>>& requests) {
    std::vector<std::pair<double, Plan>> steps;
    size_t come = 0;
    for (;;) {
      while (come < requests.size() && std::get<0>(requests[come]) <= now_) add(requests[come], come), ++come;
      while (scheduler_.next_waiting() && !scheduler_.is_full()) scheduler_.begin(scheduler_.next_waiting());
      const auto parts = scheduler_.plan(times_);
      if (parts.empty() && come == requests.size()) return steps;
      if (parts.empty()) {
        now_ = std::get<0>(requests[come]);
      } else {
        Plan plan = step(parts);
        steps.emplace_back(now_, std::move(plan));
      }
    }
  }

 private:
  void add(const std::tuple<double, int64_t, int64_t>& request, uint64_t number) {
    const auto& [when, prompt, written] = request;
    if (prompt < 1 || written < 1) fail(ErrorCode::kInvalidRequest, "a request reads and writes 1 token or more");
    RequestOptions options;
    options.prompt.assign(static_cast<size_t>(prompt), 0);
    options.max_tokens = written;
    std::vector<int32_t> ids = options.prompt;
    TextKey key(ids, {});
    scheduler_.add(
        std::make_unique<Job>(Job{std::make_shared<Request>(std::move(options)), number, KvTable(model_->kv()),
                                  std::move(ids), std::move(key), SoftText({}, model_->config()), nullptr}));
  }

  Plan step(const std::vector<Scheduler::Part>& parts) {
    Plan plan;
    int64_t writers = 0, read = 0;
    for (const auto& [job, tokens] : parts) {
      plan.emplace_back(job->number, tokens);
      job->is_writing() ? ++writers : read += tokens;
    }
    const auto seconds = seconds_of_(writers + read).cast<double>();
    now_ += seconds;
    times_.add(writers, 0, read, seconds);
    for (const auto& [job, tokens] : parts) {
      KvGrowth(job->kv, tokens).commit();
      if (job->remaining() > 0) continue;
      job->ids.push_back(0);
      const RequestOptions& options = job->request->options;
      if (static_cast<int64_t>(job->ids.size() - options.prompt.size()) == options.max_tokens) scheduler_.remove(job);
    }
    return plan;
  }

  const std::shared_ptr<Model> model_;
  const py::object seconds_of_;
  Scheduler scheduler_ = Scheduler({});
  StepTimes times_;
  double now_ = 0;
};

}  // namespace

void register_scheduler(py::module_& testing) {
  testing.def(
      "plan_steps",
      [](const std::shared_ptr<Model>& model, const std::vector<std::tuple<double, int64_t, int64_t>>& requests,
         const py::object& seconds_of) { return Steps(model, seconds_of).run(requests); },
      py::arg("model"), py::arg("requests"), py::arg("seconds_of"),
      "The steps that the engine's scheduler would make for requests, without computing anything: when each ends, in "
      "seconds, and how far it takes which requests. A request is its time of arrival, the tokens of its prompt and "
      "how many tokens it writes. They are in the order of arrival. seconds_of(rows): the time of a step.");
}

}  // namespace gemlet::bindings
