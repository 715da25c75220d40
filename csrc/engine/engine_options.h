// The options of an engine, and its counters.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "engine/prefix_cache.h"
#include "engine/step_times.h"
#include "model/model.h"

namespace gemlet {

// Whether tokens of a text are guessed, see engine/drafts.h.
enum class DraftUse : uint8_t { kNever, kWherePaying, kAlways };

struct EngineOptions {
  int64_t most_running = 32;               // requests that advance together
  int64_t kv_bytes = INT64_MAX;            // limit for keys and values, besides those of one whole context
  PrefixCache::Options prefix_cache = {};  // keeps the keys and values of texts that have ended
  DraftUse drafts = DraftUse::kWherePaying;
  int64_t most_drafted = StepTimes::kMostRows - 1;  // guessed tokens in a step: each takes a row of logits
  std::shared_ptr<Model> drafter = nullptr;  // a model that also guesses tokens; null: only the text itself is used
  int64_t most_of_drafter = StepTimes::kMostRows - 1;  // most tokens of one guess of the drafter about a text
  int64_t drafter_kv_bytes = INT64_MAX;                // limit for the drafter's keys and values, like kv_bytes
  int64_t drafter_cache_bytes = 0;                     // size of the drafter's own prefix cache
  // For measurements: returns the token that replaces `id`, which the drafter guessed after `position` tokens of a
  // text.
  std::function<int32_t(int64_t position, int32_t id)> rehearse = nullptr;
};

// Counts since the engine began. Times are in seconds.
struct EngineStats {
  int64_t running = 0, waiting = 0;  // requests, now
  double longest_wait = 0;           // longest time so far of a request that still waits for its first pass
  int64_t begun = 0;                 // requests whose first pass has begun
  double waiting_seconds = 0;        // sum of their times before the first pass
  int64_t steps = 0;
  int64_t prompt_tokens = 0;  // computed
  int64_t cached_tokens = 0;  // not computed, thanks to the prefix cache
  int64_t generated_tokens = 0;
  int64_t drafts = 0;           // guesses, one for each text and step
  int64_t drafted_tokens = 0;   // guessed tokens that went through a pass
  int64_t accepted_tokens = 0;  // the guessed tokens that were right
  int64_t preemptions = 0;
  int64_t prefix_cache_bytes = 0;                       // now
  int64_t kv_bytes = 0;                                 // blocks in use now
  int64_t kv_room_bytes = 0;                            // room for more of them now
  int64_t disk_read_bytes = 0, disk_written_bytes = 0;  // keys and values in the folder of the prefix cache
  double step_seconds = 0;
  int64_t bytes_read = 0;  // weights, keys and values that all passes of the model have read
};

}  // namespace gemlet
