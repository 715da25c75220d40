// Chooses the requests that advance in the next step, and the number of tokens of each. One step both decodes and
// prefills: each decoding request advances by one token, and chunks of prompts are computed in the same step.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/job.h"
#include "engine/step_times.h"
#include "model/config.h"

namespace gemlet {

class Scheduler {
 public:
  struct Limits {
    int64_t rows = kChunkTokens;  // most rows of a step
    int64_t running = 32;         // most requests that run at a time
    bool whole = false;           // whether each text is computed in one step, even if it has more tokens than `rows`
  };
  struct Part {
    Job* job;
    int64_t tokens;
  };

  explicit Scheduler(Limits limits) : limits_(limits) {}

  // Adds a job after all waiting jobs with the same or a higher priority.
  void add(std::unique_ptr<Job> job);
  // Moves a running job back to the waiting ones, before all others with its priority.
  void put_back(Job* job);
  std::unique_ptr<Job> remove(Job* job);

  // The next job that waits to start, or null. begin() starts it, which needs a free place: !is_full().
  Job* next_waiting() const;
  bool is_full() const { return static_cast<int64_t>(running_.size()) >= limits_.running; }
  void begin(Job* job);

  // The parts of the next step. Every decoding request advances by one token, unless its reader is slow. The step also
  // prefills prompts, with as many tokens as double the time of the step:
  // - Up to twice as many tokens are computed if that finishes a prompt.
  // - If more requests wait for their first token than decode, two to four times as many tokens are computed, in
  //   proportion to the number of waiting requests for each decoding one.
  // - The shortest remaining prompt comes first. If three steps in a row computed nothing of the prompt that has waited
  //   longest, that prompt comes first. So neither long nor short prompts wait too long for the others.
  // - One of 16 such steps may be quick: it computes the end of a prompt and no piece of another one. This delays the
  //   other prompt by at most half a step, a thirtieth of its time. No step is quick while more requests wait than
  //   decode.
  // - No span of a prompt is cut.
  std::vector<Part> plan(const StepTimes& times);

  // The running job that gives up its memory when memory runs out. A job with a slow reader comes first. Otherwise it
  // is the last job that came, of those with the lowest priority. Null if only one job runs and its reader is not slow.
  Job* victim() const;
  // The running job whose reader has been slow for the longest time, or null.
  Job* slow_reader(RequestOptions::Clock::time_point now) const;

  const std::vector<std::unique_ptr<Job>>& running() const { return running_; }
  const std::deque<std::unique_ptr<Job>>& waiting() const { return waiting_; }

 private:
  std::vector<Part> whole_texts() const;

  const Limits limits_;
  uint64_t oldest_ = 0;                        // the number of the prompt that has waited longest
  int64_t passed_over_ = 0;                    // steps in a row that computed none of its tokens
  int64_t quick_in_ = 0;                       // steps until the next step may be quick, see plan()
  std::vector<std::unique_ptr<Job>> running_;  // in the order in which they started
  std::deque<std::unique_ptr<Job>> waiting_;   // in the order in which they will start
};

}  // namespace gemlet
