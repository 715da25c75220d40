// Begins the residual with the scaled rows of the embedding table, or with soft rows.
#include <algorithm>

#include "backend/staging.h"
#include "model/forward.h"

namespace gemlet {

void ForwardPass::embed() {
  if (config_.target_size > 0) return read_target();
  if (weights_.embedding_on_disk) {
    embed_from_disk();
  } else {
    backend_.embed(weights_.embed_tokens, ids_, static_cast<float>(config_.embedding_scale), residual_);
  }
  adapt_embeddings();
  put_soft_rows();
  tap("embed", residual_, config_.hidden_size);
  if (config_.per_layer_input_size > 0) make_per_layer_inputs();
  if (config_.altup_streams > 1) open_streams();
}

// Applies the adapters of the rows, which may replace rows and add a low-rank term.
void ForwardPass::adapt_embeddings() {
  const int64_t hidden = config_.hidden_size;
  const auto scale = static_cast<float>(config_.embedding_scale);
  for (const AdapterRun& run : runs_) {
    const std::span<const int32_t> ids(ids_.data() + run.row, static_cast<size_t>(run.rows));
    float* const x = residual_ + run.row * hidden;
    const OwnRows& own = run.adapter->embedding_rows();
    if (!own.empty() && own.ids.empty()) backend_.embed(own.rows, ids, scale, x);
    for (size_t i = 0; i < ids.size() && !own.ids.empty(); ++i) {
      const auto found = std::lower_bound(own.ids.begin(), own.ids.end(), ids[i]);
      if (found == own.ids.end() || *found != ids[i]) continue;
      const auto place = static_cast<int32_t>(found - own.ids.begin());
      backend_.embed(own.rows, {&place, 1}, scale, x + static_cast<int64_t>(i) * hidden);
    }
    if (const LowRank* const term = run.adapter->term(Target::kEmbedTokens, 0)) {
      add_looked_up(*term, ids, scale, x);
      if (term->gain) backend_.mul_rows(x, term->gain, run.rows, hidden, x);
    }
  }
}

void ForwardPass::add_looked_up(const LowRank& term, std::span<const int32_t> ids, float scale, float* x) {
  const auto rows = static_cast<int64_t>(ids.size());
  float* const low = model_.scratch.take(Region::kAdapterLow, rows * term.a.cols);
  float* const delta = model_.scratch.take(Region::kAdapterDelta, rows * term.b.rows);
  backend_.embed(term.a, ids, scale * term.scale, low);
  const Product product = {low, rows, &term.b, delta};
  backend_.matmul({&product, 1});
  backend_.add_branch(delta, nullptr, eps_, rows, term.b.rows, x);
}

void ForwardPass::put_soft_rows() {
  const int64_t hidden = config_.hidden_size;
  for (const Part& part : parts_) {
    for (const SoftRows& soft : part.segment->tokens.soft_rows) {
      const auto bytes = static_cast<size_t>(soft.rows * hidden) * sizeof(float);
      backend_.upload(soft.values, bytes, residual_ + (part.row + soft.first) * hidden);
    }
  }
}

// Reads the panels of the ids from the file into a small table.
void ForwardPass::embed_from_disk() {
  const Matrix& whole = weights_.embed_tokens;
  const int64_t bytes = panel_bytes(whole.format, whole.cols);
  const int64_t most = std::min(rows_, std::max<int64_t>(1, kResidentEmbeddingBytes / bytes));
  DeviceMemory panels = backend_.allocate(static_cast<size_t>(most * bytes));
  Staging staging(backend_, panels.data(), most * bytes);
  std::vector<int32_t> ids;
  for (int64_t row = 0; row < rows_; row += static_cast<int64_t>(ids.size())) {
    ids.clear();
    for (int64_t i = 0; i < std::min(most, rows_ - row); ++i) {
      const int64_t id = ids_[static_cast<size_t>(row + i)];
      model_.mapping->read(whole.panel(id / kPanelRows), bytes, staging.host() + i * bytes);
      ids.push_back(static_cast<int32_t>(i * kPanelRows + id % kPanelRows));
    }
    staging.finish();
    const Matrix table = {whole.format, most * kPanelRows, whole.cols, panels.data()};
    backend_.embed(table, ids, static_cast<float>(config_.embedding_scale), residual_ + row * config_.hidden_size);
  }
}

}  // namespace gemlet
