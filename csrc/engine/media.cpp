#include "engine/media.h"

#include <algorithm>

namespace gemlet {

int64_t whole_tokens(std::span<const TokenSpan> spans, int64_t tokens) {
  const auto next =
      std::partition_point(spans.begin(), spans.end(), [&](const TokenSpan& s) { return s.end <= tokens; });
  return next == spans.end() ? tokens : std::min(tokens, next->begin);
}

int64_t next_whole(std::span<const TokenSpan> spans, int64_t tokens) {
  const auto next =
      std::partition_point(spans.begin(), spans.end(), [&](const TokenSpan& s) { return s.end <= tokens; });
  return next == spans.end() || next->begin > tokens ? tokens + 1 : next->end;
}

SoftText::SoftText(std::span<const PlacedMedia> media, const ModelConfig& config) {
  for (const auto& [first, one] : media) {
    soft_rows_.push_back({first, one->count, one->rows.data()});
    if (one->sees_itself && config.has_spans()) spans_.push_back({first, first + one->count});
  }
}

TokenPart::TokenPart(const TokenRun& tokens, int64_t first, int64_t end, int64_t hidden_size)
    : ids_(tokens.ids.subspan(static_cast<size_t>(first), static_cast<size_t>(end - first))) {
  for (const SoftRows& soft : tokens.soft_rows) {
    const int64_t from = std::max(first, soft.first), to = std::min(end, soft.first + soft.rows);
    if (from < to) soft_rows_.push_back({from - first, to - from, soft.values + (from - soft.first) * hidden_size});
  }
  for (const TokenSpan& span : tokens.spans) {
    if (first <= span.begin && span.end <= end) spans_.push_back({span.begin - first, span.end - first});
  }
}

}  // namespace gemlet
