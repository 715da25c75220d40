// How long steps take. It tells how much of a prompt may be read while texts are being written: as much as doubles the
// time of a step, so that those who read the texts wait about twice as long for a token, and no longer. And it tells
// what guessed tokens cost (engine/drafts.h).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace gemlet {

class StepTimes {
 public:
  static constexpr int64_t kLeast = 16, kMost = 512;
  // Steps that write are told apart up to so many rows. From 16 on, tiles may round differently, so that a text would
  // depend on the guesses about it.
  static constexpr int64_t kMostRows = 15;

  // Tokens of prompts for a step that also writes.
  int64_t prompt_tokens() const {
    if (writing_ == 0 || reading_ == 0) return kLeast;
    return std::clamp(static_cast<int64_t>(writing_ / reading_), kLeast, kMost);
  }

  // A step had `rows` rows of texts that are being written, `guesses` of them guessed tokens, and read `read` tokens of
  // prompts.
  void add(int64_t rows, int64_t guesses, int64_t read, double seconds) {
    if (read == 0 && guesses == 0) follow(writing_, seconds);
    if (read == 0 && rows <= kMostRows) of_rows_[static_cast<size_t>(rows)].add(seconds);
    guessing_ = guesses > 0 ? guessing_ + 1 : 0;
    if (read >= kLeast) {
      const double alone = rows > 0 ? std::max(seconds - writing_, 0.1 * seconds) : seconds;
      follow(reading_, alone / static_cast<double>(read));
    }
  }

  // How many times as long as one with `plain` rows, which must be known, a step takes that only writes and has `rows`
  // rows, at most kMostRows. What the shortest times say, because other programs disturb many steps, or what the means
  // say, if that is more: where others use the CPUs, steps with more rows may suffer more, as they use more threads.
  double cost(int64_t rows, int64_t plain) const {
    return std::max(writing(rows, &Time::best) / writing(plain, &Time::best),
                    writing(rows, &Time::mean) / writing(plain, &Time::mean));
  }
  bool knows_any(int64_t rows) const { return nearest(rows, -1) > 0; }
  // Whether steps with `rows` rows, none of them guessed, have been measured enough and not too long ago.
  bool knows(int64_t rows) const {
    return rows <= kMostRows && of_rows_[static_cast<size_t>(rows)].steps >= kEnough && guessing_ < kMostGuessing;
  }
  // Once in `patience` calls.
  bool is_time_to_try(int64_t patience) { return ++declined_ % patience == 0; }
  // The largest number of rows that is known.
  int64_t most_known() const { return nearest(kMostRows, -1); }

 private:
  static constexpr int64_t kEnough = 3, kMostGuessing = 32;

  struct Time {
    void add(double value) {
      constexpr double kMostMeans = 4;  // means: a single step may have been interrupted for long
      best += (steps == 0 ? 1 : value < best ? 0.5 : 0.05) * (value - best);
      mean += steps == 0 ? value : 0.1 * (std::min(value, kMostMeans * mean) - mean);
      ++steps;
    }
    double best = 0, mean = 0;
    int64_t steps = 0;
  };

  // Seconds.
  double writing(int64_t rows, double Time::* kind) const {
    constexpr double kRise = 0.1;  // for each row, where nothing larger is known
    const int64_t known = nearest(rows, -1), larger = nearest(rows, 1);
    const double base = of_rows_[static_cast<size_t>(known)].*kind, more = static_cast<double>(rows - known);
    if (larger == 0) return base * (1 + kRise * more);
    const double top = std::max(base, of_rows_[static_cast<size_t>(larger)].*kind);
    return larger == known ? base : base + (top - base) * more / static_cast<double>(larger - known);
  }

  static void follow(double& average, double value) { average = average == 0 ? value : 0.8 * average + 0.2 * value; }
  // The next number of rows from `rows` on that is known, 0 if there is none.
  int64_t nearest(int64_t rows, int64_t direction) const {
    while (rows > 0 && rows <= kMostRows && of_rows_[static_cast<size_t>(rows)].steps == 0) rows += direction;
    return rows > kMostRows ? 0 : rows;
  }

  double writing_ = 0;                       // seconds of a step that only writes
  double reading_ = 0;                       // seconds for a token of a prompt
  std::array<Time, kMostRows + 1> of_rows_;  // seconds of a step that only writes so many
  int64_t guessing_ = 0;                     // steps with guessed tokens, one after the other
  int64_t declined_ = 0;
};

}  // namespace gemlet
