// The worker's own record of a request. Only the worker's thread uses it.
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

// The most rows of logits that a request gets from one step. With the vocabulary of Gemma 3 they take 134 MB.
inline constexpr int64_t kLogitsRows = 128;

// A request whose reader is slow keeps its place among the running requests for this time.
inline constexpr std::chrono::milliseconds kGrace(100);

struct Job {
  std::shared_ptr<Request> request;
  uint64_t number;  // Numbers increase in the order of arrival.
  KvTable kv;
  std::vector<int32_t> ids;  // the prompt and the generated tokens
  TextKey key;               // the prefix cache's key for `ids`
  SoftText soft;             // the embeddings of images and sounds in `ids`
  std::unique_ptr<Sampler> sampler;
  std::unique_ptr<Drafts> drafts = nullptr;  // proposes draft tokens; null: the request gets none
  int64_t unread = 0;                        // tokens that the reader has not taken
  bool paused = false;                       // true while too many tokens are unread
  DraftState draft_state = {};               // the draft model's state for this request
  // Logits of the next token and of the draft tokens after it. They are kept while the token waits for its mask.
  std::vector<float> held = {};
  int64_t right = 0;  // the number of accepted draft tokens whose logits are at the start of `held`
  double slowed = 1;  // the time of the pass that gave `held`, as a multiple of its time without draft tokens
  // The request gave up its place while it waited for a mask. It may start again once the mask is set.
  bool needs_mask = false;
  std::optional<int32_t> chosen = std::nullopt;  // the next token, if choose_together() has chosen it already
  // since when waits_for_reader() has been true
  std::optional<RequestOptions::Clock::time_point> slow_since = std::nullopt;
  int64_t kept_blocks = 0;  // full blocks that the prefix cache holds already
  // A read from the disk cache. The request starts when it is done.
  std::shared_ptr<DiskCache::Reading> reading = nullptr;

  Wanted wanted() const { return request->options.wanted; }
  int64_t priority() const { return request->options.priority; }
  // tokens whose keys and values are not computed yet
  int64_t remaining() const { return static_cast<int64_t>(ids.size()) - kv.length(); }
  bool is_ready() const { return !reading || reading->is_done.load(std::memory_order_acquire); }
  bool is_writing() const { return remaining() == 1; }
  bool waits_for_reader() const { return paused || !held.empty(); }
  // Whether the reader has been slow for longer than kGrace. Then other requests may take the place and the memory.
  bool has_slow_reader(RequestOptions::Clock::time_point now) const { return slow_since && now - *slow_since > kGrace; }
  // The number of tokens to compute before the first token whose logits are wanted.
  int64_t before_rows() const { return std::max<int64_t>(0, request->options.first_row - kv.length()); }
  // The most tokens that this request can compute in one step.
  int64_t most_tokens() const {
    if (wanted() != Wanted::kLogits) return remaining();
    return std::min(remaining(), before_rows() > 0 ? before_rows() : kLogitsRows);
  }
  // Returns at most `tokens`, so that the step does not end inside a span. Returns 0 if the first span is longer than
  // that.
  int64_t whole(int64_t tokens) const { return whole_tokens(soft.spans(), kv.length() + tokens) - kv.length(); }
  // The fewest tokens that this request can compute in one step.
  int64_t least_tokens() const { return next_whole(soft.spans(), kv.length()) - kv.length(); }
  TokenPart next(int64_t tokens, int64_t hidden_size) const {
    return {soft.run(ids), kv.length(), kv.length() + tokens, hidden_size};
  }
  // Removes the keys and values of draft tokens that are not accepted yet.
  void forget_guesses() { kv.truncate(std::min(kv.length(), static_cast<int64_t>(ids.size()))); }
  int64_t drafted() const { return drafts ? static_cast<int64_t>(drafts->taken().size()) : 0; }
};

}  // namespace gemlet
