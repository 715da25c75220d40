// Reads one row of logits: finds its largest values and sums its exponentials. The loops over the vocabulary are plain,
// so that compilers turn them into vector instructions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace gemlet {

class LogitRow {
 public:
  struct Entry {
    float logit;
    int32_t id;
  };
  struct ComesBefore {  // sorts logits in falling order; of equal logits, the lower id comes first
    bool operator()(const Entry& a, const Entry& b) const {
      return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    }
  };

  // Keeps a reference to the logits, and the largest logit of each group of them. Throws kTensor if there is NaN or
  // +infinity, which means that the computation overflowed. -infinity is allowed: it forbids a token.
  void read(std::span<const float> logits);

  float largest() const { return largest_; }
  int32_t likeliest() const;  // the id with the largest logit; of equal logits, the lowest id

  // Returns a threshold that at least `count` logits reach, and not many more.
  float rank_floor(size_t count);
  // Sets `found` to all logits that are at least `floor`, sorted by id. Skips groups whose largest logit is below
  // `floor`.
  void collect(float floor, std::vector<Entry>& found) const;

  // The sum of e^((logit - largest) * scale) over all logits, to 7 digits.
  double exp_sum(double scale) const;

  // Drops buffers that another thread was changing during a fork.
  void leave_torn_behind();

 private:
  std::span<const float> logits_;
  float largest_ = 0;
  std::vector<float> group_peaks_, ranked_peaks_;
};

}  // namespace gemlet
