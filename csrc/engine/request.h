// A request to a model, such as to continue a text: what was asked for, how far it is, and what waits for its reader.
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

// The wanted result for the prompt.
enum class Wanted : uint8_t {
  kText,       // the continuation of the text, token by token
  kLogits,     // the logits after each of its tokens, from number `first_row` on
  kEmbedding,  // the embedding of the text, from a bidirectional model
};

struct RequestOptions {
  using Clock = std::chrono::steady_clock;

  Wanted wanted = Wanted::kText;
  std::vector<int32_t> prompt;
  std::vector<PlacedMedia> media;  // media of the prompt; they are in order and do not overlap
  int64_t first_row = 0;
  std::shared_ptr<const Adapter> adapter;     // null: only the model
  SamplerConfig sampler;                      // this and the next three are for kText
  std::vector<int32_t> end_ids;               // the first of these to be chosen ends the text and does not belong to it
  int64_t max_tokens = 1;                     // it is at least 1
  bool masked = false;                        // no token of a kText is chosen before set_mask() for it
  std::optional<size_t> logprobs;             // give those of each token, and of this many likely ones
  int64_t priority = 0;                       // a waiting request with a higher priority begins first
  std::optional<Clock::time_point> deadline;  // ends it with kTimeout
  int64_t most_unread = 16;                   // the request pauses while its reader has this many tokens to take
  uint64_t cache_salt = 0;                    // only requests with the same salt share what was computed
  std::shared_ptr<Event> news;                // notified when take() has something; not null. Requests may share it.
};

class Request {
 public:
  struct Output {
    std::vector<int32_t> ids;                   // chosen since the last take()
    std::vector<Logprobs> logprobs;             // one for each token, if they are wanted
    std::vector<float> values;                  // [rows, width] since the last take(): logits, or the embedding
    FinishReason reason = FinishReason::kNone;  // not kNone: these are the last ones
  };
  // Seconds so far.
  struct Times {
    double waiting = 0;                 // time until its first pass
    double reading = 0;                 // time in passes up to its first token
    double writing = 0;                 // time in steps after its first token
    int64_t steps = 0;                  // steps after its first token
    int64_t tokens = 0;                 // tokens chosen after its first one, including an end token
    int64_t drafted = 0, accepted = 0;  // guessed tokens that went through a pass, and those of them that were right
  };

  explicit Request(RequestOptions asked) : options(std::move(asked)) {}

  const RequestOptions options;

  // The tokens chosen so far, and whether more will come. Does not wait. Throws the error of a request that failed,
  // after its last tokens.
  Output take();
  // Says which ids may be chosen as the token after `position` others. The pass that computes its logits does not wait
  // for the mask. If the last of the others are only guessed, `behind` has these guesses, and the mask is used only if
  // they are chosen. A mask changes nothing if its token was chosen meanwhile, or if other tokens than `behind` were
  // chosen. Throws kInvalidRequest if the position is neither the next one nor one after guesses.
  void set_mask(int64_t position, TokenMask mask, std::span<const int32_t> behind = {});
  // The number of chosen tokens, and the tokens that are guessed to follow.
  std::pair<int64_t, std::vector<int32_t>> guessed() const;
  // Ends the request with kCancelled at the next opportunity, unless it has ended already.
  void cancel();

  // Whether cancel() was called.
  const std::atomic<bool>& cancelled_flag() const { return cancelled_; }

  // Tokens of the prompt whose keys and values were there already.
  int64_t cached_tokens() const { return cached_tokens_.load(std::memory_order_relaxed); }
  // Tokens of the prompt that were read, including the cached ones.
  int64_t read_tokens() const { return read_tokens_.load(std::memory_order_relaxed); }
  Times times() const;

 private:
  friend class Engine;
  friend struct Worker;

  // The next four change only under fork_safe_mutex().
  bool has_mask() const { return masks_.contains(generated_.size()); }
  void guess(std::span<const int32_t> ids);
  void add(int32_t id);
  std::optional<int32_t> token_at(size_t position) const;  // the token may be a guessed one

  std::vector<int32_t> generated_;
  size_t taken_ = 0;                                          // the number of them that the reader has taken
  std::vector<Logprobs> logprobs_;                            // logprobs of the tokens that were not taken
  std::map<size_t, std::shared_ptr<const TokenMask>> masks_;  // masks of the next tokens, by position
  std::vector<int32_t> guessed_;                              // tokens from guessed_from_ on; masks_ count on them
  size_t guessed_from_ = 0;
  std::vector<float> values_;  // values that wait for the reader
  int64_t handed_rows_ = 0;    // rows of logits so far, with those that wait
  FinishReason reason_ = FinishReason::kNone;
  std::optional<Error> error_;  // set only with kFailed
  std::atomic<bool> cancelled_{false};
  std::atomic<int64_t> cached_tokens_{0}, read_tokens_{0};
  const RequestOptions::Clock::time_point submitted_ = RequestOptions::Clock::now();
  std::optional<RequestOptions::Clock::time_point> began_;
  Times times_;
  RequestOptions::Clock::time_point counted_;  // times_ are complete up to this moment
  bool has_first_ = false;                     // whether it has its first token
  Event* engine_event_ = nullptr;              // the event that it signals when the reader takes or cancels
  uint32_t forks_ = 0;                         // the process that computes it
};

}  // namespace gemlet
