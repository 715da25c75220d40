// Chooses how many guessed tokens of a text go through a pass.
//
// A pass over the last token of a text and k guessed ones costs more time than one over the last token alone, but less
// than k + 1 passes, as long as the CPU waits for the weights. From the logits of all these rows the text's own sampler
// chooses tokens one after the other, as it would without guesses, up to the first one that was guessed wrong. So the
// text is the same, and a step gives it 1 to k + 1 tokens.
//
// Guesses cost time, so a step takes them only if that pays: it knows how long steps with more rows take
// (engine/step_times.h) and how often the guesses about each text have been right. Guesses that do not go through a
// pass are compared, too, with what is chosen. Guesses of a model (engine/draft_model.h) also cost passes of their own,
// so their length is chosen before they are made. Guesses must not make any text slower. So each text has an account of
// the time that it gained and lost, also by guesses about other texts in its steps. If it has lost more than it gained
// plus a hundredth of its tokens, its steps take no guesses for a while.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/drafter.h"
#include "engine/step_times.h"

namespace gemlet {

class Drafts;

// The number of guessed tokens that go through a pass, and their gain: the share of tokens that the same time gives in
// addition.
struct DraftChoice {
  int64_t count = 0;
  double gain = 0;
};

struct ModelDrafts {
  Drafts* text;
  int64_t most;       // the most tokens that may be guessed
  int64_t depth = 0;  // the number of tokens to guess
};

class Drafts {
 public:
  // Without a drafter nothing is guessed. `model_chance` is the share of a model's guesses that were right.
  explicit Drafts(std::unique_ptr<Drafter> drafter, double model_chance = 0.6) : drafter_(std::move(drafter)) {
    chances_[kModelKind] = model_chance;
  }

  // A guess of at most `most` tokens; none of them is taken yet.
  void propose(std::span<const int32_t> ids, int64_t most);
  // The guessed tokens that go through the pass.
  std::span<const int32_t> taken() const { return std::span(draft_.ids).first(static_cast<size_t>(taken_)); }
  // `last` and the guessed tokens after it. Valid until the next call.
  std::span<const int32_t> behind(int32_t last);
  // Takes at most `most` of them, without choose_drafts(). Returns how many.
  int64_t take(int64_t most);

  // Replaces the guess that was proposed. All of the new guess goes through the pass.
  void offer(Draft draft);
  bool is_of_model() const { return draft_.kind == kModelKind && !draft_.ids.empty(); }
  double model_chance() const { return chances_[kModelKind]; }

  // Records that `id` was chosen as the token at `index` after the text. Returns true if the pass has a row of logits
  // for the token after it. This is so if the token was guessed and went through the pass.
  bool check(int64_t index, int32_t id);
  bool may_lose() const { return account_ >= 0; }
  // Records that a step took `time` times as long as it would without guesses, and gave the text `tokens` tokens.
  void account(double time, int64_t tokens);

 private:
  friend DraftChoice choose_drafts(std::span<Drafts* const> texts, int64_t rows, int64_t most, StepTimes& times);
  friend DraftChoice choose_depths(std::span<ModelDrafts> texts, int64_t rows, int64_t most, double pass,
                                   const StepTimes& times);

  const std::unique_ptr<Drafter> drafter_;
  Draft draft_;
  std::vector<int32_t> run_;
  int64_t taken_ = 0;
  std::array<double, kDraftKinds> chances_ = {0.3, 0.5, 0.8,
                                              0.6};  // the chance that the next token of a guess is right
  double account_ = 0.5;                             // unit: steps
};

// Takes guessed tokens, at most `most` in all, of the texts of a step that only writes and has `rows` rows without
// them.
DraftChoice choose_drafts(std::span<Drafts* const> texts, int64_t rows, int64_t most, StepTimes& times);

// Sets `depth` of the texts about which a model may guess, at most `most` tokens in all. One of its passes takes `pass`
// times as long as a step without guesses.
DraftChoice choose_depths(std::span<ModelDrafts> texts, int64_t rows, int64_t most, double pass,
                          const StepTimes& times);

// The gain of a text that runs alone from the best number of guesses, if each is right with this chance.
double gain_alone(double chance, double pass, const StepTimes& times);

}  // namespace gemlet
