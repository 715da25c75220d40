// The options and the counters of an engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "engine/prefix_cache.h"
#include "engine/step_times.h"
#include "model/model.h"

namespace gemlet {

// When the engine uses draft tokens (see engine/drafts.h).
enum class DraftUse : uint8_t { kNever, kWherePaying, kAlways };

struct EngineOptions {
  int64_t most_running = 32;               // the most requests that advance together
  int64_t kv_bytes = INT64_MAX;            // limit for keys and values, in addition to those of one full context
  PrefixCache::Options prefix_cache = {};  // the cache for the keys and values of ended requests
  DraftUse drafts = DraftUse::kWherePaying;
  int64_t most_drafted = StepTimes::kMostRows - 1;  // the most draft tokens in a step; each needs a row of logits
  std::shared_ptr<Model> drafter = nullptr;  // the draft model; null: draft tokens come only from the text itself
  // the most draft tokens that the draft model proposes for one request in a step
  int64_t most_of_drafter = StepTimes::kMostRows - 1;
  int64_t drafter_kv_bytes = INT64_MAX;  // limit for the draft model's keys and values, like kv_bytes
  int64_t drafter_cache_bytes = 0;       // size of the draft model's own prefix cache
  // Only for measurements: returns the token that replaces the draft token `id` at `position` of a text.
  std::function<int32_t(int64_t position, int32_t id)> rehearse = nullptr;
};

// Counters since the engine started. Times are in seconds.
struct EngineStats {
  int64_t running = 0, waiting = 0;  // numbers of requests now
  double longest_wait = 0;           // the longest time that a request now waits for its first pass
  int64_t begun = 0;                 // requests that have started their first pass
  double waiting_seconds = 0;        // total time that requests waited for their first pass
  int64_t steps = 0;
  int64_t prompt_tokens = 0;  // prompt tokens that were computed
  int64_t cached_tokens = 0;  // prompt tokens that came from the prefix cache
  int64_t generated_tokens = 0;
  int64_t drafts = 0;           // drafts: at most one for each request and step
  int64_t drafted_tokens = 0;   // draft tokens that went through a pass
  int64_t accepted_tokens = 0;  // draft tokens that were accepted
  int64_t preemptions = 0;
  int64_t prefix_cache_bytes = 0;                       // bytes in the prefix cache now
  int64_t kv_bytes = 0;                                 // bytes of blocks in use now
  int64_t kv_room_bytes = 0;                            // bytes that are free for more blocks now
  int64_t disk_read_bytes = 0, disk_written_bytes = 0;  // bytes of keys and values in the prefix cache's folder
  double step_seconds = 0;
  int64_t bytes_read = 0;  // bytes of weights, keys and values that all passes read
};

}  // namespace gemlet
