// Which requests advance in the next step, and by how many tokens. A step has no phases: texts that are being written
// advance by one token while chunks of prompts are read beside them.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/job.h"
#include "engine/step_times.h"

namespace gemlet {

class Scheduler {
 public:
  struct Limits {
    int64_t rows = 512;    // most rows of a step
    int64_t running = 32;  // requests that hold a place
    bool whole = false;    // a text goes through in one step, even if it is longer than a step
  };
  struct Part {
    Job* job;
    int64_t tokens;
  };

  explicit Scheduler(Limits limits) : limits_(limits) {}

  // Behind all that wait with the same or a higher priority.
  void add(std::unique_ptr<Job> job);
  // Back to the front of those that wait with its priority.
  void put_back(Job* job);
  std::unique_ptr<Job> remove(Job* job);

  // The next one that waits to begin, or null. begin() starts it, if not is_full().
  Job* next_waiting() const;
  bool is_full() const { return static_cast<int64_t>(running_.size()) >= limits_.running; }
  void begin(Job* job);

  // The next step. While texts are being written, it also reads tokens of prompts, as many as double its time. It reads
  // up to twice as many if that is the end of a prompt. If more texts wait for their first token than are being
  // written, it reads two to four times as many: as many times as texts wait for each one that is written. The prompt
  // that is done soonest comes first. The one that has waited longest comes first when three steps in a row have not
  // read it, so that neither a long prompt nor a short one waits for the others. While more texts are written than
  // wait, one of 16 steps with prompts, where it reads the end of one, reads no piece of another, and is shorter. That
  // costs the other one half a step at most, a thirtieth of its time. No prompt is cut within a span.
  std::vector<Part> plan(const StepTimes& times);

  // The running job to give up when memory runs out: one whose reader is slow, else the last one that came of the
  // lowest priority. Null if there is only one.
  Job* victim() const;
  // The running job whose reader has been slow for the longest time, or null.
  Job* slow_reader(RequestOptions::Clock::time_point now) const;

  const std::vector<std::unique_ptr<Job>>& running() const { return running_; }
  const std::deque<std::unique_ptr<Job>>& waiting() const { return waiting_; }

 private:
  std::vector<Part> whole_texts() const;

  const Limits limits_;
  uint64_t oldest_ = 0;                        // the number of the prompt that has waited longest
  int64_t passed_over_ = 0;                    // steps in a row that have not read it
  int64_t quick_in_ = 0;                       // this many steps with prompts must still read pieces beside ends
  std::vector<std::unique_ptr<Job>> running_;  // those that began first come first
  std::deque<std::unique_ptr<Job>> waiting_;   // those that will begin first come first
};

}  // namespace gemlet
