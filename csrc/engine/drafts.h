// Chooses how many draft tokens go through a forward pass (speculative decoding).
//
// A pass over the last token of a text and k draft tokens takes longer than a pass over the last token alone. It takes
// less time than k + 1 passes as long as the CPU waits for the weights. The pass gives logits for all these tokens. The
// request's own sampler chooses tokens from them one after the other, until a chosen token differs from the draft
// token. So drafts do not change the text, and one step generates 1 to k + 1 tokens.
//
// Draft tokens cost time, so a step uses them only if they save more. It knows how long steps with more rows take
// (engine/step_times.h) and how often each request accepted draft tokens so far. Draft tokens that do not go through a
// pass are also compared with the chosen tokens, to measure this rate. A draft model (engine/draft_model.h) costs
// passes of its own, so the number of its tokens is chosen before it runs.
//
// Drafts must not make any request slower. So each request has an account of the time that drafts saved and cost it.
// The drafts of other requests in the same steps count too. If a request lost more than it gained plus a hundredth of
// its tokens, its steps use no draft tokens for a while.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/drafter.h"
#include "engine/step_times.h"

namespace gemlet {

class Drafts;

// The number of draft tokens in a pass, and their gain: 0.5 means half as many tokens again in the same time.
struct DraftChoice {
  int64_t count = 0;
  double gain = 0;
};

struct ModelDrafts {
  Drafts* text;
  int64_t most;       // the most tokens that the draft model may propose
  int64_t depth = 0;  // the number of tokens that it is to propose
};

class Drafts {
 public:
  // A null drafter proposes nothing. `model_chance` is the share of the draft model's tokens that were accepted so far.
  explicit Drafts(std::unique_ptr<Drafter> drafter, double model_chance = 0.6) : drafter_(std::move(drafter)) {
    chances_[kModelKind] = model_chance;
  }

  // Proposes at most `most` draft tokens. None of them goes through a pass until it is taken.
  void propose(std::span<const int32_t> ids, int64_t most);
  // The draft tokens that go through the pass.
  std::span<const int32_t> taken() const { return std::span(draft_.ids).first(static_cast<size_t>(taken_)); }
  // `last` and the taken draft tokens after it. The span is valid until the next call.
  std::span<const int32_t> behind(int32_t last);
  // Takes the first draft tokens, at most `most`, without choose_drafts(). Returns the number of taken tokens.
  int64_t take(int64_t most);

  // Replaces the proposed draft by this one, and takes all of its tokens.
  void offer(Draft draft);
  bool is_of_model() const { return draft_.kind == kModelKind && !draft_.ids.empty(); }
  double model_chance() const { return chances_[kModelKind]; }

  // Records that `id` was chosen as the token at `index`, counted from the first draft token. Returns true if this
  // token is a taken draft token: then the pass also has the logits of the next token.
  bool check(int64_t index, int32_t id);
  bool may_lose() const { return account_ >= 0; }
  // Records that a step took `time` times as long as without draft tokens, and gave the request `tokens` tokens.
  void account(double time, int64_t tokens);

 private:
  friend DraftChoice choose_drafts(std::span<Drafts* const> texts, int64_t rows, int64_t most, StepTimes& times);
  friend DraftChoice choose_depths(std::span<ModelDrafts> texts, int64_t rows, int64_t most, double pass,
                                   const StepTimes& times);

  const std::unique_ptr<Drafter> drafter_;
  Draft draft_;
  std::vector<int32_t> run_;
  int64_t taken_ = 0;
  // For each kind, the share of draft tokens that are accepted.
  std::array<double, kDraftKinds> chances_ = {0.3, 0.5, 0.8, 0.6};
  double account_ = 0.5;  // saved minus lost time; the unit is one step
};

// Takes draft tokens of these texts, at most `most` in all, for a step that only decodes. `rows` is the number of rows
// of the step without draft tokens.
DraftChoice choose_drafts(std::span<Drafts* const> texts, int64_t rows, int64_t most, StepTimes& times);

// Sets the `depth` of each text, at most `most` tokens in all. One pass of the draft model takes `pass` times as long
// as a step without draft tokens.
DraftChoice choose_depths(std::span<ModelDrafts> texts, int64_t rows, int64_t most, double pass,
                          const StepTimes& times);

// The gain of the best number of draft tokens for a request that runs alone, if each is accepted with this probability.
double gain_alone(double chance, double pass, const StepTimes& times);

}  // namespace gemlet
