// Images and sounds in the prompt of a request, as embeddings, and the parts of a prompt that one pass computes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "model/batch.h"

namespace gemlet {

using Digest = std::array<uint8_t, 32>;

// The embeddings that a vision or audio tower computed for one image or sound.
struct Media {
  std::vector<float> rows;  // [count, hidden]
  int64_t count, hidden_size;
  Digest digest;     // a digest of everything on which the rows depend
  bool sees_itself;  // true: the tokens form a span, and in layers with look-ahead each sees all others
};

// Media whose rows replace the prompt's tokens from `first` on.
struct PlacedMedia {
  int64_t first;
  std::shared_ptr<const Media> media;
};

// The largest number, at most `tokens`, at which a text can be cut without cutting a span.
int64_t whole_tokens(std::span<const TokenSpan> spans, int64_t tokens);
// The smallest number above `tokens` at which a text can be cut without cutting a span.
int64_t next_whole(std::span<const TokenSpan> spans, int64_t tokens);

// The soft rows (embeddings) and spans of a prompt. The media must outlive this object.
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

// Tokens [first, end) of `tokens`, with their soft rows and the spans that lie completely among them.
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
