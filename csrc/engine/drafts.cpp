#include "engine/drafts.h"

#include <algorithm>
#include <vector>

namespace gemlet {
namespace {

constexpr double kMostChance = 0.95;  // so that texts which repeat themselves count the same
constexpr double kRate = 0.1;         // at which a chance follows what happens
constexpr double kGrant = 0.01;       // of a step, for each step: what trying may cost
constexpr double kMostSaved = 3;      // steps on an account
constexpr double kLeastGain = 0.03;   // of a step
constexpr int64_t kBeyondKnown = 2;   // rows more than any step had so far
constexpr int64_t kPatience = 100;    // steps between two looks whether a row still costs too much

// A guessed token that could go through the pass.
struct Candidate {
  double chance;  // that it and all before it are right
  Drafts* text;
  double account;
  bool operator<(const Candidate& other) const {
    return chance > other.chance || (chance == other.chance && account < other.account);
  }
};

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

int64_t choose_drafts(std::span<Drafts* const> texts, int64_t rows, int64_t most, StepTimes& times) {
  if (!times.knows(rows)) return 0;
  most = std::min({most, StepTimes::kMostRows - rows, times.most_known() + kBeyondKnown - rows});
  if (most <= 0) return 0;
  std::vector<Candidate> candidates;
  for (Drafts* const text : texts) {
    if (text->account_ < 0) return 0;
    double chance = 1;
    for (size_t i = 0; i < text->draft_.ids.size(); ++i) {
      chance *= std::min(kMostChance, text->chances_[text->draft_.kind]);
      candidates.push_back({chance, text, text->account_});
    }
  }
  if (candidates.empty()) return 0;
  std::stable_sort(candidates.begin(), candidates.end());
  most = std::min(most, static_cast<int64_t>(candidates.size()));
  int64_t best = 0;
  double expected = 0, most_gained = kLeastGain;
  for (int64_t count = 1; count <= most; ++count) {
    expected += candidates[static_cast<size_t>(count - 1)].chance;
    const double gain = expected / static_cast<double>(rows) - (times.cost(rows + count, rows) - 1);
    if (gain <= most_gained) continue;
    most_gained = gain;
    best = count;
  }
  // What a row costs is measured only by taking one.
  if (best == 0 && candidates[0].chance > 0.5 && times.is_time_to_try(kPatience)) best = 1;
  for (int64_t i = 0; i < best; ++i) ++candidates[static_cast<size_t>(i)].text->taken_;
  return best;
}

}  // namespace gemlet
