// The parts in which an assistant differs from an independent model (csrc/MODEL.md, "Assistants"): a row begins with
// the target's state of the text, its queries see the target's keys and values, and it gives a state for the next
// token.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "model/forward.h"
#include "model/model.h"

namespace gemlet {

// residual = pre_projection [embedding of the token in the target; the target's state]
void ForwardPass::read_target() {
  const ModelWeights& target = batch_.target->weights();
  const auto scale = static_cast<float>(batch_.target->config().embedding_scale);
  const int64_t size = config_.target_size;
  float* const x = take(Region::kTargetInputs, 2 * size);
  for (const Part& part : parts_) {
    float* const row = x + part.row * 2 * size;
    backend_.embed(target.embed_tokens, part.segment->tokens.ids, scale, row);
    backend_.upload(part.segment->state, static_cast<size_t>(size) * sizeof(float), row + size);
  }
  const Product product = {x, rows_, &weights_.pre_projection, residual_};
  backend_.matmul({&product, 1});
  tap("embed", residual_, config_.hidden_size);
}

// Queries see the tokens before their own, in a window those up to `sliding_window` + 1 before it, as far as the target
// has them.
void ForwardPass::attend_to_target(const LayerConfig& layer, AttentionShape shape, const float* q, float* mixed) {
  std::vector<std::pair<int64_t, AttentionSegment>> segments;  // each segment with its window
  for (const Part& part : parts_) {
    const KvView<const uint8_t> view = part.segment->kv->view(static_cast<size_t>(layer.kv_source));
    const int64_t there = part.position - view.first_block * kKvBlockTokens;
    const int64_t window = layer.sliding_window > 0 ? std::min(layer.sliding_window + 1, there) : 0;
    segments.push_back({window, {{view, part.row, 1, part.position - 1}, {}}});
  }
  std::stable_sort(segments.begin(), segments.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t first = 0, end = 0; first < segments.size(); first = end) {
    std::vector<AttentionSegment> same;
    for (; end < segments.size() && segments[end].first == segments[first].first; ++end) {
      same.push_back(segments[end].second);
    }
    shape.window = segments[first].first;
    backend_.attention(shape, same, q, mixed);
  }
}

// logits of the rows x [rows, hidden] after the final norm, and the states for the next tokens.
void ForwardPass::guess(const float* x) {
  const int64_t size = config_.target_size;
  if (batch_.states) {
    float* const states = take(Region::kTargetStates, size);
    const Product product = {x, rows_, &weights_.post_projection, states};
    backend_.matmul({&product, 1});
    backend_.download(states, static_cast<size_t>(rows_ * size) * sizeof(float), batch_.states);
  }
  if (config_.centroids > 0) guess_by_centroids(x);
}

// Only the rows of the head that belong to the best centroids are multiplied. All other ids are less likely than those.
void ForwardPass::guess_by_centroids(const float* x) {
  const int64_t count = config_.centroids, vocab = config_.vocab_size, group = vocab / count;
  const int64_t most = std::min(config_.centroids_per_token, count);
  float* const scores = take(Region::kCentroidScores, count);
  const Product product = {x, rows_, &weights_.centroids, scores};
  backend_.matmul({&product, 1});
  std::vector<float> of_row(static_cast<size_t>(count)), found;
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t row = 0; row < rows_; ++row) {
    backend_.download(scores + row * count, of_row.size() * sizeof(float), of_row.data());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    const auto is_better = [&](int64_t a, int64_t b) {
      const float x_a = of_row[static_cast<size_t>(a)], x_b = of_row[static_cast<size_t>(b)];
      return x_a > x_b || (x_a == x_b && a < b);
    };
    if (std::any_of(of_row.begin(), of_row.end(), [](float score) { return score != score; })) {
      fail(ErrorCode::kTensor, "the scores of an assistant's centroids are not numbers");
    }
    std::partial_sort(order.begin(), order.begin() + most, order.end(), is_better);
    // A panel of the head may have rows of two centroids.
    struct Run {
      int64_t first, skipped, at;  // the panel's first row, rows before the group, place among the products
    };
    std::vector<Run> runs;
    std::vector<Matrix> parts;
    int64_t floats = 0;
    for (int64_t i = 0; i < most; ++i) {
      const int64_t begin = order[static_cast<size_t>(i)] * group, first = begin / kPanelRows * kPanelRows;
      parts.push_back(weights_.lm_head.part(first, std::min(vocab, begin + group) - first));
      runs.push_back({first, begin - first, floats});
      floats += parts.back().rows;
    }
    float* const values = model_.scratch.take(Region::kCentroidLogits, floats);
    products_.clear();
    for (size_t i = 0; i < parts.size(); ++i) {
      products_.push_back({x + row * config_.hidden_size, 1, &parts[i], values + runs[i].at});
    }
    backend_.matmul(products_);
    found.resize(static_cast<size_t>(floats));
    backend_.download(values, found.size() * sizeof(float), found.data());
    float least = found[static_cast<size_t>(runs[0].skipped)];
    for (const Run& run : runs) {
      for (int64_t i = 0; i < group; ++i) least = std::min(least, found[static_cast<size_t>(run.at + run.skipped + i)]);
    }
    float* const logits = batch_.logits + row * vocab;
    std::fill_n(logits, vocab, least - 1.0f);
    for (const Run& run : runs) {
      for (int64_t i = 0; i < group; ++i) {
        const int32_t id = weights_.token_order[static_cast<size_t>(run.first + run.skipped + i)];
        logits[id] = found[static_cast<size_t>(run.at + run.skipped + i)];
      }
    }
  }
}

}  // namespace gemlet
