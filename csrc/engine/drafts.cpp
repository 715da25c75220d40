#include "engine/drafts.h"

#include <algorithm>
#include <vector>

namespace gemlet {
namespace {

// the highest acceptance rate that is assumed; so all texts that repeat themselves count the same
constexpr double kMostChance = 0.95;
constexpr double kRate = 0.1;        // the weight of the newest draft token in an acceptance rate
constexpr double kGrant = 0.01;      // added to an account at each step, in steps, so that drafts can be tried again
constexpr double kMostSaved = 3;     // the largest balance of an account, in steps
constexpr double kLeastGain = 0.03;  // draft tokens must gain at least this share of the tokens
constexpr int64_t kBeyondKnown = 2;  // a step may have this many rows more than any step before
constexpr int64_t kPatience = 100;   // steps between two trials of a row that seems to cost too much

// A draft token that could go through the pass.
struct Candidate {
  double chance;  // the probability that this token and all draft tokens before it are accepted
  size_t text;
  double account;
  bool operator<(const Candidate& other) const {
    return chance > other.chance || (chance == other.chance && account < other.account);
  }
};

int64_t most_rows(int64_t rows, int64_t most, const StepTimes& times) {
  if (!times.knows(rows)) return 0;
  return std::min({most, StepTimes::kMostRows - rows, times.most_known() + kBeyondKnown - rows});
}

// Chooses the number of candidates with the largest gain. With a draft model, each further candidate of the same
// request costs one more `pass`.
DraftChoice choose(std::span<const Candidate> candidates, int64_t rows, int64_t most, double pass,
                   const StepTimes& times) {
  DraftChoice best = {0, kLeastGain};
  std::vector<int64_t> depths;
  int64_t deepest = 0;
  double expected = 0;
  most = std::min(most, static_cast<int64_t>(candidates.size()));
  for (int64_t count = 1; count <= most; ++count) {
    const Candidate& one = candidates[static_cast<size_t>(count - 1)];
    if (depths.size() <= one.text) depths.resize(one.text + 1);
    deepest = std::max(deepest, ++depths[one.text]);
    expected += one.chance;
    // The gain is in tokens, for the time of a step without draft tokens.
    const double time = times.cost(rows + count, rows) + pass * static_cast<double>(deepest);
    const double gain = (1 + expected / static_cast<double>(rows)) / time - 1;
    if (gain > best.gain) best = {count, gain};
  }
  return best.count > 0 ? best : DraftChoice();
}

}  // namespace

void Drafts::propose(std::span<const int32_t> ids, int64_t most) {
  taken_ = 0;
  draft_ = drafter_ && most > 0 ? drafter_->propose(ids, most) : Draft();
}

std::span<const int32_t> Drafts::behind(int32_t last) {
  run_.assign(1, last);
  run_.insert(run_.end(), taken().begin(), taken().end());
  return run_;
}

void Drafts::offer(Draft draft) {
  draft_ = std::move(draft);
  taken_ = static_cast<int64_t>(draft_.ids.size());
}

int64_t Drafts::take(int64_t most) {
  return taken_ = std::clamp<int64_t>(most, 0, static_cast<int64_t>(draft_.ids.size()));
}

bool Drafts::check(int64_t index, int32_t id) {
  if (index >= static_cast<int64_t>(draft_.ids.size())) return false;
  const bool is_right = draft_.ids[static_cast<size_t>(index)] == id;
  double& chance = chances_[draft_.kind];
  chance += kRate * ((is_right ? 1.0 : 0.0) - chance);
  return is_right && index < taken_;
}

void Drafts::account(double time, int64_t tokens) {
  account_ = std::min(kMostSaved, account_ + static_cast<double>(tokens) - time + kGrant);
}

DraftChoice choose_drafts(std::span<Drafts* const> texts, int64_t rows, int64_t most, StepTimes& times) {
  most = most_rows(rows, most, times);
  if (most <= 0) return {};
  std::vector<Candidate> candidates;
  for (size_t at = 0; at < texts.size(); ++at) {
    const Drafts* const text = texts[at];
    if (text->account_ < 0) return {};
    double chance = 1;
    for (size_t i = 0; i < text->draft_.ids.size(); ++i) {
      chance *= std::min(kMostChance, text->chances_[text->draft_.kind]);
      candidates.push_back({chance, at, text->account_});
    }
  }
  if (candidates.empty()) return {};
  std::stable_sort(candidates.begin(), candidates.end());
  DraftChoice best = choose(candidates, rows, most, 0, times);
  // The cost of a row can be measured only by taking one.
  if (best.count == 0 && candidates[0].chance > 0.5 && times.is_time_to_try(kPatience)) best.count = 1;
  for (int64_t i = 0; i < best.count; ++i) ++texts[candidates[static_cast<size_t>(i)].text]->taken_;
  return best;
}

DraftChoice choose_depths(std::span<ModelDrafts> texts, int64_t rows, int64_t most, double pass,
                          const StepTimes& times) {
  most = most_rows(rows, most, times);
  if (most <= 0) return {};
  std::vector<Candidate> candidates;
  for (size_t at = 0; at < texts.size(); ++at) {
    ModelDrafts& one = texts[at];
    one.depth = 0;
    if (one.text->account_ < 0) return {};
    double chance = 1;
    for (int64_t i = 0; i < std::min(one.most, most); ++i) {
      chance *= std::min(kMostChance, one.text->chances_[kModelKind]);
      candidates.push_back({chance, at, one.text->account_});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end());
  const DraftChoice best = choose(candidates, rows, most, pass, times);
  for (int64_t i = 0; i < best.count; ++i) ++texts[candidates[static_cast<size_t>(i)].text].depth;
  return best;
}

double gain_alone(double chance, double pass, const StepTimes& times) {
  std::vector<Candidate> candidates;
  double of_all = 1;
  for (int64_t i = 1; i < StepTimes::kMostRows; ++i) {
    of_all *= std::min(kMostChance, chance);
    candidates.push_back({of_all, 0, 0});
  }
  return times.knows_any(1) ? choose(candidates, 1, StepTimes::kMostRows - 1, pass, times).gain : 0;
}

}  // namespace gemlet
