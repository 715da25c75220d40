// Proposes draft tokens: tokens that may come next in a text. One forward pass checks several of them; see
// engine/drafts.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gemlet {

inline constexpr int64_t kDraftKinds = 4;
inline constexpr size_t kModelKind = 3;  // the kind of a draft model's tokens (engine/draft_model.h)

struct Draft {
  std::vector<int32_t> ids;
  size_t kind = 0;  // A number below kDraftKinds. Drafts of one kind have about the same acceptance rate.
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  // Proposes at most `most` tokens that may come after `ids`, or none. `ids` must begin with the ids of the previous
  // call.
  virtual Draft propose(std::span<const int32_t> ids, int64_t most) = 0;
};

// Looks for an earlier occurrence of the last tokens in the text, and proposes the tokens that followed it. If there
// are several occurrences, it takes the one with the longest match; of equally long matches, the latest one.
class PromptLookup final : public Drafter {
 public:
  Draft propose(std::span<const int32_t> ids, int64_t most) override;

 private:
  void index(std::span<const int32_t> ids);
  size_t slot(std::span<const int32_t> ids, size_t end) const;

  // A place is the number of tokens before it. latest_[hash of two tokens] is the latest place after two tokens with
  // this hash. earlier_[place] is the previous place with the same hash. 0 means none.
  std::vector<uint32_t> latest_, earlier_;
};

}  // namespace gemlet
