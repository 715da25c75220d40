// How long steps take. It tells how much of a prompt may be read while texts are being written: as much as doubles the
// time of a step, so that those who read the texts wait about twice as long for a token, and no longer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace gemlet {

class StepTimes {
 public:
  static constexpr int64_t kLeast = 16, kMost = 512;

  // Tokens of prompts for a step that also writes.
  int64_t prompt_tokens() const {
    if (writing_ == 0 || reading_ == 0) return kLeast;
    return std::clamp(static_cast<int64_t>(writing_ / reading_), kLeast, kMost);
  }

  // A step wrote to `writers` texts and read `read` tokens of prompts.
  void add(int64_t writers, int64_t read, double seconds) {
    if (read == 0) follow(writing_, seconds);
    if (read >= kLeast) {
      const double alone = writers > 0 ? std::max(seconds - writing_, 0.1 * seconds) : seconds;
      follow(reading_, alone / static_cast<double>(read));
    }
  }

 private:
  static void follow(double& average, double value) { average = average == 0 ? value : 0.8 * average + 0.2 * value; }

  double writing_ = 0;  // seconds of a step that only writes
  double reading_ = 0;  // seconds for a token of a prompt
};

}  // namespace gemlet
