// The tokens' rows of the embedding table, scaled.
#include <algorithm>

#include "backend/staging.h"
#include "model/forward.h"

namespace gemlet {

void ForwardPass::embed() {
  if (weights_.embedding_on_disk) {
    embed_from_disk();
  } else {
    backend_.embed(weights_.embed_tokens, ids_, static_cast<float>(config_.embedding_scale), residual_);
  }
  tap("embed", residual_, config_.hidden_size);
  if (config_.per_layer_input_size > 0) make_per_layer_inputs();
  if (config_.altup_streams > 1) open_streams();
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
