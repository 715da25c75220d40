#include "engine/assistant_drafts.h"

#include <algorithm>

#include "engine/job.h"

namespace gemlet {

Assistant::Assistant(std::shared_ptr<Model> model, std::shared_ptr<Model> target)
    : model_(std::move(model)), target_(std::move(target)) {}

int64_t Assistant::most(const Job& job) const { return job.draft_state.states.empty() ? 0 : StepTimes::kMostRows - 1; }

void Assistant::guess(std::span<Ask> asks) {
  const int64_t width = model_->config().vocab_size, size = target_->config().hidden_size;
  const auto count = static_cast<int64_t>(asks.size());
  const auto bytes = static_cast<size_t>(count * (width + size)) * sizeof(float);
  if (outputs_.size() < bytes) outputs_ = AlignedBuffer(bytes);
  struct Text {
    Ask* ask;
    std::vector<int32_t> history;
    std::vector<float> state;
    int32_t last;
  };
  std::vector<Text> texts;
  for (Ask& ask : asks) {
    if (ask.most <= 0) continue;
    const DraftState& known = ask.job->draft_state;
    const auto first = known.states.begin() + known.right * size;
    texts.push_back({&ask, ask.job->ids, {first, first + size}, ask.job->ids.back()});
  }
  target_->run(count, [&](Backend&) {
    while (!texts.empty()) {
      Batch batch;
      batch.logits = outputs_.as<float>();
      batch.states = batch.logits + static_cast<int64_t>(texts.size()) * width;
      batch.target = target_.get();
      for (const Text& text : texts) {
        Job& job = *text.ask->job;
        batch.segments.push_back({&job.kv, {{&text.last, 1}}, LogitsWanted::kLast});
        batch.segments.back().cancel = &job.request->cancelled_flag();
        batch.segments.back().state = text.state.data();
      }
      const std::vector<bool> cancelled = model_->forward(batch);
      for (size_t i = 0; i < texts.size(); ++i) {
        Text& text = texts[i];
        const auto row = static_cast<int64_t>(i);
        text.last = cancelled[i] ? -1
                                 : choose_guess(*text.ask->job, batch.logits + row * width, width, width, text.history,
                                                static_cast<int64_t>(text.ask->ids.size()), wide_);
        if (text.last < 0) continue;
        text.state.assign(batch.states + row * size, batch.states + (row + 1) * size);
        text.ask->ids.push_back(text.last);
        text.history.push_back(text.last);
      }
      std::erase_if(texts, [](const Text& text) {
        return text.last < 0 || static_cast<int64_t>(text.ask->ids.size()) >= text.ask->most;
      });
    }
  });
}

void Assistant::end(Job& job) { job.draft_state = DraftState(); }

}  // namespace gemlet
