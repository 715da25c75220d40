// Measures the time of steps. It estimates how many prompt tokens a step can compute while other requests decode: as
// many as double the time of the step. Readers then wait about twice as long for a token. It also estimates the cost of
// draft tokens (engine/drafts.h).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace gemlet {

class StepTimes {
 public:
  static constexpr int64_t kLeast = 16, kMost = 512;
  // Steps that only decode are measured separately up to this many rows. From 16 rows on, tiles may round differently,
  // so that a text would depend on its draft tokens.
  static constexpr int64_t kMostRows = 15;

  // Prompt tokens that double the time of a step in which `writers` requests decode.
  int64_t prompt_tokens(int64_t writers) const {
    const auto like_fixed = row_ == 0 ? 0 : static_cast<int64_t>(std::min(fixed_ / row_, 1.0 * kMost));
    return std::clamp(like_fixed + writers, kLeast, kMost);
  }

  // Records the time of a step. It had `rows` rows of decoding requests, of which `guesses` were draft tokens, and it
  // computed `read` prompt tokens.
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

  // The time of a step that only decodes `rows` rows (at most kMostRows), divided by its time for `plain` rows, which
  // must be known. Other programs disturb many steps, so this is the ratio of the shortest times. If the ratio of the
  // means is larger, that one counts: steps with more rows use more threads, and may slow down more when other programs
  // use the CPUs.
  double cost(int64_t rows, int64_t plain) const {
    return std::max(writing(rows, &Time::best) / writing(plain, &Time::best),
                    writing(rows, &Time::mean) / writing(plain, &Time::mean));
  }
  // Seconds of a step with this many rows, which must be known.
  double seconds(int64_t rows) const { return writing(rows, &Time::mean); }
  bool knows_any(int64_t rows) const { return nearest(rows, -1) > 0; }
  // Whether steps with `rows` rows and no draft tokens were measured often enough, and recently.
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
      // A longer time than this counts as this many means, because the step may have been interrupted.
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
  std::array<Time, kMostRows + 1> of_rows_;  // times of steps that only decode, by number of rows
  int64_t guessing_ = 0;                     // the last steps in a row that had draft tokens
  int64_t declined_ = 0;
};

}  // namespace gemlet
