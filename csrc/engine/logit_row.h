// One row of logits: its largest values, and the sum of its exponentials. Passes over the vocabulary are plain loops
// that compilers turn into vector instructions.
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
  struct ComesBefore {  // orders logits from high to low; of equal ones the lower id comes first
    bool operator()(const Entry& a, const Entry& b) const {
      return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    }
  };

  // Keeps a reference to the logits, and the largest of each small group of them. Throws kTensor if they hold NaN or
  // infinity, which means that the computation overflowed; -infinity only forbids a token.
  void read(std::span<const float> logits);

  float largest() const { return largest_; }
  int32_t likeliest() const;  // the first with the largest logit

  // A threshold that at least `count` logits reach, and not many more.
  float rank_floor(size_t count);
  // `found` = all with a logit of at least `floor`, by id. Most groups hold none.
  void collect(float floor, std::vector<Entry>& found) const;

  // The sum of e^((logit - largest) * scale), to 7 digits.
  double exp_sum(double scale) const;

  // Forgets buffers that another thread was changing during a fork.
  void leave_torn_behind();

 private:
  std::span<const float> logits_;
  float largest_ = 0;
  std::vector<float> group_peaks_, ranked_peaks_;
};

}  // namespace gemlet
