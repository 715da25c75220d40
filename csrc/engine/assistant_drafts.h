// Speculative decoding with an assistant (ModelConfig::target_size): a draft model that uses the target model's keys
// and values, and its hidden state for the last token. An assistant has no keys and values of its own and needs no
// prefill.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/draft_model.h"

namespace gemlet {

class Assistant final : public DraftModel {
 public:
  Assistant(std::shared_ptr<Model> model, std::shared_ptr<Model> target);

  bool takes_states() const override { return true; }
  int64_t most(const Job& job) const override;
  int64_t behind(Job&) override { return 1; }
  void read(Job&, int64_t) override {}
  void guess(std::span<Ask> asks) override;
  int64_t pass_bytes() const override { return model_->decode_bytes(0); }
  void end(Job& job) override;
  bool make_room() override { return false; }
  void close() override {}

 private:
  const std::shared_ptr<Model> model_, target_;
  AlignedBuffer outputs_;  // first the logits, then the hidden states
  std::vector<float> wide_;
};

}  // namespace gemlet
