// Speculative decoding with a draft model, which is smaller than the target model. It proposes tokens for all requests
// of a step at once. It needs as many passes as the longest draft has tokens. Each draft token is chosen from the draft
// model's logits by the request's own sampler, with the random numbers that the sampler will use next. So drafts of
// sampled texts are accepted more often.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "engine/draft_state.h"
#include "engine/prefix_cache.h"
#include "model/model.h"

namespace gemlet {

struct Job;

class DraftModel {
 public:
  // Asks for a draft of at most `most` tokens for a request. The draft goes to `ids`.
  struct Ask {
    Job* job;
    int64_t most;
    std::vector<int32_t> ids = {};
  };

  virtual ~DraftModel() = default;
  // Whether the draft model needs the target model's hidden states of the rows from which tokens were chosen.
  virtual bool takes_states() const { return false; }
  // The most tokens that a draft for this request may have.
  virtual int64_t most(const Job& job) const = 0;
  // The number of tokens of this request that the draft model has to prefill before it can propose tokens.
  virtual int64_t behind(Job& job) = 0;
  // Prefills the next of these tokens, at most `tokens`.
  virtual void read(Job& job, int64_t tokens) = 0;
  virtual void guess(std::span<Ask> asks) = 0;
  // Bytes of weights that one decoding pass reads.
  virtual int64_t pass_bytes() const = 0;
  // Called when the request has ended or gives up its memory.
  virtual void end(Job& job) = 0;
  // Called when memory has run out. Frees the keys and values of ended requests. Returns whether anything was freed.
  virtual bool make_room() = 0;
  // Called when the engine has ended.
  virtual void close() = 0;
};

// A draft model that works alone: any smaller model with the same vocabulary. It has its own keys and values.
class SmallerModel final : public DraftModel {
 public:
  // `model` computes on the backend of `target`. `news` is notified by the draft model's prefix cache.
  SmallerModel(std::shared_ptr<Model> model, std::shared_ptr<Model> target, int64_t cache_bytes, Event& news);

  int64_t most(const Job& job) const override;
  int64_t behind(Job& job) override;
  void read(Job& job, int64_t tokens) override;
  void guess(std::span<Ask> asks) override;
  int64_t pass_bytes() const override { return model_->decode_bytes(0); }
  void end(Job& job) override;
  bool make_room() override;
  void close() override { cache_.close(); }

 private:
  void settle(Job& job);

  const std::shared_ptr<Model> model_, target_;
  PrefixCache cache_;
  AlignedBuffer logits_;
  std::vector<float> wide_;  // logits, extended to the vocabulary size of the target model
};

// Throws kInvalidRequest or kUnsupported if `drafter` cannot be a draft model for `target`.
void check_drafter(const Model& drafter, const Model& target);

// Returns the token that the request's sampler would choose from these logits after `history`, `ahead` tokens later
// than its next one. Returns -1 if there is no such token. logits has `count` values; the target model's vocabulary has
// `vocab`. wide is scratch memory.
int32_t choose_guess(const Job& job, const float* logits, int64_t count, int64_t vocab,
                     std::span<const int32_t> history, int64_t ahead, std::vector<float>& wide);

}  // namespace gemlet
