// A request as the engine's worker sees it. Only the worker touches it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/disk_cache.h"
#include "engine/draft_state.h"
#include "engine/drafts.h"
#include "engine/media.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/text_key.h"
#include "model/kv_table.h"

namespace gemlet {

// The most rows of logits that a request gets from one step. Those of Gemma 3 take 134 MB.
inline constexpr int64_t kLogitsRows = 128;

// A text may wait this long for its reader before it makes room for others.
inline constexpr std::chrono::milliseconds kGrace(100);

struct Job {
  std::shared_ptr<Request> request;
  uint64_t number;  // numbers follow the order of arrival
  KvTable kv;
  std::vector<int32_t> ids;  // prompt and generated
  TextKey key;               // the key of these ids
  SoftText soft;             // the soft tokens among these ids
  std::unique_ptr<Sampler> sampler;
  std::unique_ptr<Drafts> drafts = nullptr;  // guesses how the text goes on; null: there are no guesses
  int64_t unread = 0;                        // tokens that its reader has not taken
  bool paused = false;                       // true if the reader is slow
  DraftState draft_state = {};               // the tokens that a drafting model has read for it, and their results
  std::vector<float> held = {};  // the logits of its next token, whose mask is missing, and of the guesses after it
  int64_t right = 0;             // guesses of the last pass that have been chosen, while logits are held
  double slowed = 1;             // the factor by which guesses made that pass longer
  bool needs_mask = false;       // it gave up its place while it waited for a mask, and begins again when it has one
  std::optional<int32_t> chosen = std::nullopt;  // the next token of the text, see Worker::choose_together()
  std::optional<RequestOptions::Clock::time_point> slow_since = std::nullopt;  // waits_for_reader()
  int64_t kept_blocks = 0;                                                     // blocks that the prefix cache has
  std::shared_ptr<DiskCache::Reading> reading = nullptr;  // from the disk; the request waits for that

  Wanted wanted() const { return request->options.wanted; }
  int64_t priority() const { return request->options.priority; }
  int64_t remaining() const { return static_cast<int64_t>(ids.size()) - kv.length(); }  // tokens to compute
  bool is_ready() const { return !reading || reading->is_done.load(std::memory_order_acquire); }
  bool is_writing() const { return remaining() == 1; }
  bool waits_for_reader() const { return paused || !held.empty(); }
  // Whether its reader has been slow for a while. Then it may not keep its place and its memory from others.
  bool has_slow_reader(RequestOptions::Clock::time_point now) const { return slow_since && now - *slow_since > kGrace; }
  // The number of tokens before those whose logits are wanted.
  int64_t before_rows() const { return std::max<int64_t>(0, request->options.first_row - kv.length()); }
  // The most of the remaining tokens that one step can take.
  int64_t most_tokens() const {
    if (wanted() != Wanted::kLogits) return remaining();
    return std::min(remaining(), before_rows() > 0 ? before_rows() : kLogitsRows);
  }
  // Reduces a number of next tokens so that the step does not end within a span. 0: the next span is longer.
  int64_t whole(int64_t tokens) const { return whole_tokens(soft.spans(), kv.length() + tokens) - kv.length(); }
  // The fewest tokens that a step can take.
  int64_t least_tokens() const { return next_whole(soft.spans(), kv.length()) - kv.length(); }
  TokenPart next(int64_t tokens, int64_t hidden_size) const {
    return {soft.run(ids), kv.length(), kv.length() + tokens, hidden_size};
  }
  // Takes back the keys and values of guesses of which nothing is known yet.
  void forget_guesses() { kv.truncate(std::min(kv.length(), static_cast<int64_t>(ids.size()))); }
  int64_t drafted() const { return drafts ? static_cast<int64_t>(drafts->taken().size()) : 0; }
};

}  // namespace gemlet
