#include "engine/draft_model.h"

#include <algorithm>

#include "base/error.h"
#include "engine/job.h"

namespace gemlet {

void check_drafter(const Model& drafter, const Model& target) {
  if (target.config().bidirectional || drafter.config().bidirectional) {
    fail(ErrorCode::kUnsupported, "a drafter needs two models that continue texts, but one of these makes embeddings");
  }
  if (drafter.shared_backend() != target.shared_backend()) {
    fail(ErrorCode::kInvalidRequest, "the drafter was not built for this model; build it with `beside`");
  }
}

int32_t choose_guess(const Job& job, const float* logits, int64_t count, int64_t vocab,
                     std::span<const int32_t> history, int64_t ahead, std::vector<float>& wide) {
  std::span<const float> row(logits, static_cast<size_t>(std::min(count, vocab)));
  if (count < vocab) {  // the draft model never proposes the other ids
    wide.assign(row.begin(), row.end());
    wide.resize(static_cast<size_t>(vocab), *std::min_element(row.begin(), row.end()) - 100.0f);
    row = wide;
  }
  try {
    return job.sampler->guess(row, history, ahead);
  } catch (const Error&) {  // an error in the draft model's logits does not end the request
    return -1;
  }
}

SmallerModel::SmallerModel(std::shared_ptr<Model> model, std::shared_ptr<Model> target, int64_t cache_bytes,
                           Event& news)
    : model_(std::move(model)), target_(std::move(target)), cache_(model_->kv(), {cache_bytes}, news) {}

int64_t SmallerModel::most(const Job& job) const {
  if (job.soft.has_media()) return 0;
  const int64_t vocab = model_->config().vocab_size;
  const bool knows_all = vocab >= target_->config().vocab_size ||
                         std::all_of(job.ids.begin(), job.ids.end(), [&](int32_t id) { return id < vocab; });
  return knows_all ? model_->config().max_context - static_cast<int64_t>(job.ids.size()) : 0;
}

// Removes the keys and values of draft tokens that were not accepted.
void SmallerModel::settle(Job& job) {
  DraftState& state = job.draft_state;
  if (!state.kv) {
    state.kv = std::make_unique<KvTable>(model_->kv(), true, StepTimes::kMostRows);
    const int64_t most = static_cast<int64_t>(job.ids.size()) - 1;
    state.certain = cache_.restore({{}, job.request->options.cache_salt}, job.key, most, *state.kv);
    state.kept_blocks = state.certain / kKvBlockTokens;
  }
  size_t right = 0;
  const auto next = [&] { return static_cast<size_t>(state.certain) + right; };
  while (right < state.guessed.size() && next() < job.ids.size() && state.guessed[right] == job.ids[next()]) ++right;
  // At least the last token must be computed again, because the pass for it gives the logits. After a failed step, the
  // next pass begins with it too.
  state.certain = static_cast<int64_t>(std::min(next(), job.ids.size() - 1));
  state.guessed.clear();
  state.kv->truncate(state.certain);
}

int64_t SmallerModel::behind(Job& job) {
  settle(job);
  return static_cast<int64_t>(job.ids.size()) - job.draft_state.certain;
}

void SmallerModel::read(Job& job, int64_t tokens) {
  settle(job);
  DraftState& state = job.draft_state;
  const auto first = static_cast<size_t>(state.certain);
  const size_t count = std::min(static_cast<size_t>(tokens), job.ids.size() - first);
  if (count == 0) return;
  Batch batch;
  batch.segments.push_back({state.kv.get(), {std::span(job.ids).subspan(first, count)}, LogitsWanted::kNone});
  batch.segments.back().cancel = &job.request->cancelled_flag();
  bool was_cancelled = false;
  target_->run(static_cast<int64_t>(count), [&](Backend&) { was_cancelled = model_->forward(batch)[0]; });
  if (!was_cancelled) state.certain += static_cast<int64_t>(count);
}

void SmallerModel::guess(std::span<Ask> asks) {
  const int64_t width = model_->config().vocab_size;
  const auto bytes = static_cast<size_t>(static_cast<int64_t>(asks.size()) * width) * sizeof(float);
  if (logits_.size() < bytes) logits_ = AlignedBuffer(bytes);
  struct Text {
    Ask* ask;
    std::vector<int32_t> history, run;  // run: the tokens of the next pass
  };
  std::vector<Text> texts;
  for (Ask& ask : asks) {
    settle(*ask.job);
    const std::vector<int32_t>& ids = ask.job->ids;
    if (ask.most > 0) texts.push_back({&ask, ids, {ids.begin() + ask.job->draft_state.certain, ids.end()}});
  }
  target_->run(static_cast<int64_t>(asks.size()), [&](Backend&) {
    while (!texts.empty()) {
      Batch batch;
      batch.logits = logits_.as<float>();
      for (const Text& text : texts) {
        Job& job = *text.ask->job;
        batch.segments.push_back({job.draft_state.kv.get(), {text.run}, LogitsWanted::kLast});
        batch.segments.back().cancel = &job.request->cancelled_flag();
      }
      const std::vector<bool> cancelled = model_->forward(batch);
      for (size_t i = 0; i < texts.size(); ++i) {
        Text& text = texts[i];
        Ask& ask = *text.ask;
        DraftState& state = ask.job->draft_state;
        int32_t id = -1;
        if (!cancelled[i]) {
          if (ask.ids.empty()) {
            state.certain += static_cast<int64_t>(text.run.size());
          } else {
            state.guessed.push_back(ask.ids.back());
          }
          id = choose_guess(*ask.job, batch.logits + static_cast<int64_t>(i) * width, width,
                            target_->config().vocab_size, text.history, static_cast<int64_t>(ask.ids.size()), wide_);
        }
        text.run.assign(1, id);
        if (id < 0) continue;
        ask.ids.push_back(id);
        text.history.push_back(id);
      }
      std::erase_if(texts, [](const Text& text) {
        return text.run[0] < 0 || static_cast<int64_t>(text.ask->ids.size()) >= text.ask->most;
      });
    }
  });
}

void SmallerModel::end(Job& job) {
  DraftState& state = job.draft_state;
  if (!state.kv) return;
  settle(job);
  cache_.keep({{}, job.request->options.cache_salt}, job.key, *state.kv, state.kept_blocks, true);
  state = DraftState();
}

bool SmallerModel::make_room() { return cache_.give_up(std::max<int64_t>(cache_.bytes() / 4, 1)); }

}  // namespace gemlet
