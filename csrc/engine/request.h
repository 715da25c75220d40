// A request to a model: its options, its progress, and the results that its reader has not taken.
//
// Everything here except the constants changes only under fork_safe_mutex(), for short moments, so it is complete in a
// forked process. The forward pass also needs keys and values. The engine can compute them again from the ids, after a
// fork and when memory runs out.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/event.h"
#include "engine/logprobs.h"
#include "engine/media.h"
#include "engine/sampler.h"
#include "model/adapter.h"

namespace gemlet {

enum class FinishReason : uint8_t { kNone, kStop, kLength, kContext, kCancelled, kTimeout, kFailed };

// The kind of result.
enum class Wanted : uint8_t {
  kText,       // generated tokens that continue the prompt
  kLogits,     // the logits after each token of the prompt, from token `first_row` on
  kEmbedding,  // the embedding of the prompt, from a bidirectional model
};

struct RequestOptions {
  using Clock = std::chrono::steady_clock;

  Wanted wanted = Wanted::kText;
  std::vector<int32_t> prompt;
  std::vector<PlacedMedia> media;  // images and sounds of the prompt, in order and without overlap
  int64_t first_row = 0;
  std::shared_ptr<const Adapter> adapter;  // null: no adapter
  SamplerConfig sampler;                   // this member and the next three are only for kText
  std::vector<int32_t> end_ids;    // the first of these ids to be chosen ends the text; it is not part of the text
  int64_t max_tokens = 1;          // at least 1
  bool masked = false;             // true: each token waits until set_mask() was called for it
  std::optional<size_t> logprobs;  // return the log probability of each token, and of this many likely tokens
  int64_t priority = 0;            // a waiting request with a higher priority starts first
  std::optional<Clock::time_point> deadline;  // at this time the request ends with kTimeout
  int64_t most_unread = 16;                   // the request pauses while the reader has this many tokens to take
  uint64_t cache_salt = 0;                    // only requests with the same salt share cached keys and values
  std::shared_ptr<Event> news;                // notified when take() has something; never null; requests may share it
};

class Request {
 public:
  struct Output {
    std::vector<int32_t> ids;                   // chosen since the last take()
    std::vector<Logprobs> logprobs;             // one for each token, if options.logprobs is set
    std::vector<float> values;                  // rows [rows, width] since the last take(): logits, or the embedding
    FinishReason reason = FinishReason::kNone;  // not kNone: the request has ended, and this is the last output
  };
  // Seconds so far.
  struct Times {
    double waiting = 0;                 // time before the first pass
    double reading = 0;                 // time in passes up to the first token
    double writing = 0;                 // time in steps after the first token
    int64_t steps = 0;                  // steps after the first token
    int64_t tokens = 0;                 // tokens chosen after the first one, including an end token
    int64_t drafted = 0, accepted = 0;  // draft tokens that went through a pass, and accepted draft tokens
  };

  explicit Request(RequestOptions asked) : options(std::move(asked)) {}

  const RequestOptions options;

  // Returns the output since the last call, without waiting. If the request has failed, throws its error after the last
  // output was taken.
  Output take();
  // Says which ids may be chosen as the token at `position` (0: the first generated token). The pass that computes the
  // token's logits does not wait for the mask. If draft tokens come before the position, `behind` has these draft
  // tokens. The mask is then used only if all of them are accepted, and otherwise has no effect. It also has no effect
  // if the token was chosen meanwhile. Throws kInvalidRequest if the position is neither that of the next token nor one
  // after draft tokens.
  void set_mask(int64_t position, TokenMask mask, std::span<const int32_t> behind = {});
  // The number of chosen tokens, and the draft tokens that follow them.
  std::pair<int64_t, std::vector<int32_t>> guessed() const;
  // Ends the request with kCancelled soon, unless it has ended already.
  void cancel();

  // Whether cancel() was called.
  const std::atomic<bool>& cancelled_flag() const { return cancelled_; }

  // Prompt tokens whose keys and values came from the prefix cache.
  int64_t cached_tokens() const { return cached_tokens_.load(std::memory_order_relaxed); }
  // Prompt tokens whose keys and values are there, including the cached ones.
  int64_t read_tokens() const { return read_tokens_.load(std::memory_order_relaxed); }
  Times times() const;

 private:
  friend class Engine;
  friend struct Worker;

  // The next four change only under fork_safe_mutex().
  bool has_mask() const { return masks_.contains(generated_.size()); }
  void guess(std::span<const int32_t> ids);
  void add(int32_t id);
  std::optional<int32_t> token_at(size_t position) const;  // the token may be a draft token

  std::vector<int32_t> generated_;
  size_t taken_ = 0;                // how many of generated_ the reader has taken
  std::vector<Logprobs> logprobs_;  // log probabilities of the tokens that the reader has not taken
  std::map<size_t, std::shared_ptr<const TokenMask>> masks_;  // masks of coming tokens, by position
  std::vector<int32_t> guessed_;  // draft tokens from position guessed_from_ on; the masks after it assume them
  size_t guessed_from_ = 0;
  std::vector<float> values_;  // values that the reader has not taken
  int64_t handed_rows_ = 0;    // rows of logits so far, including those that the reader has not taken
  FinishReason reason_ = FinishReason::kNone;
  std::optional<Error> error_;  // set only with kFailed
  std::atomic<bool> cancelled_{false};
  std::atomic<int64_t> cached_tokens_{0}, read_tokens_{0};
  const RequestOptions::Clock::time_point submitted_ = RequestOptions::Clock::now();
  std::optional<RequestOptions::Clock::time_point> began_;
  Times times_;
  RequestOptions::Clock::time_point counted_;  // times_ are complete up to this moment
  bool has_first_ = false;                     // whether the first token was chosen
  Event* engine_event_ = nullptr;              // notified when the reader takes output or cancels
  uint32_t forks_ = 0;                         // the fork_generation() of the process that computes the request
};

}  // namespace gemlet
