// Guesses how a text goes on. A pass checks several guessed tokens at once; see engine/drafts.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gemlet {

inline constexpr int64_t kDraftKinds = 4;
inline constexpr size_t kModelKind = 3;  // the kind of guesses that a model makes (engine/draft_model.h)

struct Draft {
  std::vector<int32_t> ids;
  size_t kind = 0;  // below kDraftKinds: drafts of one kind are right about equally often
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  // Guesses at most `most` tokens that may come after `ids`; none if it has no guess. `ids` must begin with the ids of
  // the call before.
  virtual Draft propose(std::span<const int32_t> ids, int64_t most) = 0;
};

// Finds the last tokens earlier in the text, and proposes what came after them there. Of several such places it takes
// the one that has the most tokens before it in common with the end; of those, the last one.
class PromptLookup final : public Drafter {
 public:
  Draft propose(std::span<const int32_t> ids, int64_t most) override;

 private:
  void index(std::span<const int32_t> ids);
  size_t slot(std::span<const int32_t> ids, size_t end) const;

  // Places in the text: the number of tokens before them. latest_[hash of the last two tokens]: the last such place;
  // earlier_[place]: the one before it with the same hash. 0: none.
  std::vector<uint32_t> latest_, earlier_;
};

}  // namespace gemlet
