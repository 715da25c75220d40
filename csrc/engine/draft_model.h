// Guesses of a model that is smaller than the one that writes. It guesses about all texts of a step at once, in as many
// passes as there are tokens in the longest guess. Each token is what the text's own sampler, with the random numbers
// that are next, would choose from the drafter's logits; so guesses about sampled texts are right more often.
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
  // A guess of `most` tokens or fewer about a text.
  struct Ask {
    Job* job;
    int64_t most;
    std::vector<int32_t> ids = {};
  };

  virtual ~DraftModel() = default;
  virtual bool takes_states() const {
    return false;
  }  // whether it takes the model's states of the rows that chose a token
  // The most tokens that a guess about a text may have.
  virtual int64_t most(const Job& job) const = 0;
  // Tokens of a text that have to be read before a guess.
  virtual int64_t behind(Job& job) = 0;
  // Reads the next of these tokens, at most `tokens`.
  virtual void read(Job& job, int64_t tokens) = 0;
  virtual void guess(std::span<Ask> asks) = 0;
  // Bytes of weights that a pass reads.
  virtual int64_t pass_bytes() const = 0;
  // Is called when a text has ended or gives up its memory.
  virtual void end(Job& job) = 0;
  // Is called when memory has run out. Frees what is kept of texts that have ended. Returns whether there was anything.
  virtual bool make_room() = 0;
  // Is called when the engine has ended.
  virtual void close() = 0;
};

// Any model with the same vocabulary. It has its own keys and values, and its own memory for them.
class SmallerModel final : public DraftModel {
 public:
  // It computes on the backend of the other model.
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
  std::vector<float> wide_;  // logits of the other model's width
};

// Throws kInvalidRequest or kUnsupported if `drafter` cannot guess for `target`.
void check_drafter(const Model& drafter, const Model& target);

// The token that a text's sampler, after `history` and `ahead` more tokens than it has drawn, would choose; -1 if there
// is none. logits [count], of which the text's model has `vocab`; wide: memory for as many.
int32_t choose_guess(const Job& job, const float* logits, int64_t count, int64_t vocab,
                     std::span<const int32_t> history, int64_t ahead, std::vector<float>& wide);

}  // namespace gemlet
