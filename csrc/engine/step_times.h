// Measures the time of steps. It tells how much of a prompt may be read while texts are being written: as much as
// doubles the time of a step. Then readers of the texts wait about twice as long for a token. It also tells what
// guessed tokens cost (engine/drafts.h).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace gemlet {

class StepTimes {
 public:
  static constexpr int64_t kLeast = 16, kMost = 512;
  // Steps that only write are measured separately up to this many rows. From 16 on, tiles may round differently, so
  // that a text would depend on the guesses about it.
  static constexpr int64_t kMostRows = 15;

  // Tokens of prompts that double the time of a step in which `writers` texts are written.
  int64_t prompt_tokens(int64_t writers) const {
    const auto like_fixed = row_ == 0 ? 0 : static_cast<int64_t>(std::min(fixed_ / row_, 1.0 * kMost));
    return std::clamp(like_fixed + writers, kLeast, kMost);
  }

  // Records the time of a step. It had `rows` rows of texts that are being written, of which `guesses` were guessed
  // tokens, and it read `read` tokens of prompts.
  void add(int64_t rows, int64_t guesses, int64_t read, double seconds) {
    if (read == 0 && rows <= kMostRows) of_rows_[static_cast<size_t>(rows)].add(seconds);
    guessing_ = guesses > 0 ? guessing_ + 1 : 0;
    const auto all = static_cast<double>(rows + read);
    if (rows + read >= kManyRows) {
      const double fixed = fixed_ > 0 ? std::min(fixed_, 0.9 * seconds) : 0;
      follow(row_, (seconds - fixed) / all);
    } else if (row_ > 0) {
      follow(fixed_, std::max(seconds - all * row_, 0.1 * seconds));
    }
  }

  // The time of a step that only writes with `rows` rows, at most kMostRows, divided by its time with `plain` rows,
  // which must be known. It is the ratio of the shortest times, because other programs disturb many steps, or of the
  // means if that is larger: if other programs use the CPUs, steps with more rows may slow down more, because they use
  // more threads.
  double cost(int64_t rows, int64_t plain) const {
    return std::max(writing(rows, &Time::best) / writing(plain, &Time::best),
                    writing(rows, &Time::mean) / writing(plain, &Time::mean));
  }
  // Seconds of a step with this many rows, which must be known.
  double seconds(int64_t rows) const { return writing(rows, &Time::mean); }
  bool knows_any(int64_t rows) const { return nearest(rows, -1) > 0; }
  // Whether steps with `rows` rows, none of them guessed, have been measured enough and not too long ago.
  bool knows(int64_t rows) const {
    return rows <= kMostRows && of_rows_[static_cast<size_t>(rows)].steps >= kEnough && guessing_ < kMostGuessing;
  }
  // True once in `patience` calls.
  bool is_time_to_try(int64_t patience) { return ++declined_ % patience == 0; }
  // The largest number of rows that is known.
  int64_t most_known() const { return nearest(kMostRows, -1); }

 private:
  static constexpr int64_t kEnough = 3, kMostGuessing = 32, kManyRows = 32;

  struct Time {
    void add(double value) {
      // In means. A longer time counts as this much, because the step may have been interrupted.
      constexpr double kMostMeans = 4;
      best += (steps == 0 ? 1 : value < best ? 0.5 : 0.05) * (value - best);
      mean += steps == 0 ? value : 0.1 * (std::min(value, kMostMeans * mean) - mean);
      ++steps;
    }
    double best = 0, mean = 0;
    int64_t steps = 0;
  };

  // Seconds of a step that writes this many rows, estimated from the numbers of rows that are known.
  double writing(int64_t rows, double Time::* kind) const {
    constexpr double kRise = 0.1;  // assumed rise of the time for each row, if no larger number of rows is known
    const int64_t known = nearest(rows, -1), larger = nearest(rows, 1);
    const double base = of_rows_[static_cast<size_t>(known)].*kind, more = static_cast<double>(rows - known);
    if (larger == 0) return base * (1 + kRise * more);
    const double top = std::max(base, of_rows_[static_cast<size_t>(larger)].*kind);
    return larger == known ? base : base + (top - base) * more / static_cast<double>(larger - known);
  }

  static void follow(double& average, double value) { average = average == 0 ? value : 0.8 * average + 0.2 * value; }
  // The first known number of rows from `rows` on, in steps of `direction`; 0 if there is none.
  int64_t nearest(int64_t rows, int64_t direction) const {
    while (rows > 0 && rows <= kMostRows && of_rows_[static_cast<size_t>(rows)].steps == 0) rows += direction;
    return rows > kMostRows ? 0 : rows;
  }

  // A step of n rows takes about fixed_ + n * row_ seconds: the weights are read once. Steps with few rows are used to
  // measure fixed_, and steps with many rows to measure row_.
  double fixed_ = 0, row_ = 0;
  std::array<Time, kMostRows + 1> of_rows_;  // seconds of a step that only writes this many
  int64_t guessing_ = 0;                     // steps with guessed tokens, one after the other
  int64_t declined_ = 0;
};

}  // namespace gemlet
