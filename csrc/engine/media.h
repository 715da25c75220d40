// Ready-made embeddings in the prompt of a request, and the parts of a text that a pass takes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/batch.h"

namespace gemlet {

using Digest = std::array<uint8_t, 32>;

// The rows that a tower makes from an image or a sound.
struct Media {
  std::vector<float> rows;  // [count, hidden]
  int64_t count, hidden_size;
  Digest digest;     // over all that the rows depend on: other rows have another digest
  bool sees_itself;  // true: its tokens are a span, and each sees all of them in layers that look ahead
};

// It takes the place of the tokens of a prompt from `first` on.
struct PlacedMedia {
  int64_t first;
  std::shared_ptr<const Media> media;
};

// The largest number up to `tokens` for which the first tokens of a text do not end within a span.
int64_t whole_tokens(std::span<const TokenSpan> spans, int64_t tokens);
// The smallest number above `tokens` for which the first tokens of a text do not end within a span.
int64_t next_whole(std::span<const TokenSpan> spans, int64_t tokens);

// The soft rows and spans of a prompt with media, which must live longer.
class SoftText {
 public:
  SoftText(std::span<const PlacedMedia> media, const ModelConfig& config);
  TokenRun run(std::span<const int32_t> ids) const { return {ids, soft_rows_, spans_}; }
  std::span<const TokenSpan> spans() const { return spans_; }
  bool has_media() const { return !soft_rows_.empty(); }

 private:
  std::vector<SoftRows> soft_rows_;
  std::vector<TokenSpan> spans_;
};

// Tokens [first, end) of `tokens`, with the parts of soft rows and the whole spans that are there.
class TokenPart {
 public:
  TokenPart(const TokenRun& tokens, int64_t first, int64_t end, int64_t hidden_size);
  TokenRun run() const { return {ids_, soft_rows_, spans_}; }

 private:
  std::span<const int32_t> ids_;
  std::vector<SoftRows> soft_rows_;
  std::vector<TokenSpan> spans_;
};

}  // namespace gemlet
