// The end of a pass: the final norm, then the output head, or the embeddings of whole texts.
#include <algorithm>
#include <numeric>

#include "model/forward.h"

namespace gemlet {
namespace {

// Most bytes of logits in memory that is not the host's.
constexpr int64_t kResidentLogitsBytes = int64_t{64} << 20;

}  // namespace

// The head is the largest matrix: one product with all rows that want logits reads it once.
void ForwardPass::logits() {
  const int64_t hidden = config_.hidden_size;
  if (rows_ == 0) return;
  if (config_.altup_streams > 1) close_streams();
  if (batch_.taps) {
    backend_.rms_norm(residual_, weights_.final_norm, eps_, rows_, hidden, normed_);
    tap("final_norm", normed_, hidden);
  }
  std::vector<int32_t> rows(static_cast<size_t>(wanted_));  // of the batch's logits, their row in the pass
  for (const Part& part : parts_) {
    std::iota(rows.begin() + part.output, rows.begin() + part.output + part.wanted,
              static_cast<int32_t>(part.row + part.rows - part.wanted));
  }
  float* const x = take(Region::kHeadInput, hidden);
  backend_.gather(residual_, rows, hidden, x);
  backend_.rms_norm(x, weights_.final_norm, eps_, wanted_, hidden, x);
  if (backend_.host_memory()) return multiply_head(x, wanted_, batch_.logits);
  // Other memory holds the logits of some rows at a time.
  const int64_t row_bytes = config_.vocab_size * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::min(wanted_, std::max<int64_t>(1, kResidentLogitsBytes / row_bytes));
  DeviceMemory logits = backend_.allocate(static_cast<size_t>(most * row_bytes));
  for (int64_t first = 0; first < wanted_; first += most) {
    const int64_t count = std::min(most, wanted_ - first);
    multiply_head(x + first * hidden, count, logits.as<float>());
    backend_.download(logits.data(), static_cast<size_t>(count * row_bytes),
                      batch_.logits + first * config_.vocab_size);
  }
}

void ForwardPass::multiply_head(const float* x, int64_t rows, float* logits) {
  const Matrix& whole = weights_.lm_head;
  // A head on disk is read in runs of as many pairs of panels as may be resident. Kernels in tiles take panels in
  // pairs.
  const int64_t pair_bytes = 2 * panel_bytes(whole.format, whole.cols);
  const int64_t most = weights_.embedding_on_disk
                           ? std::max<int64_t>(1, kResidentEmbeddingBytes / pair_bytes) * 2 * kPanelRows
                           : whole.rows;
  DeviceMemory resident;
  for (int64_t first = 0; first < whole.rows; first += most) {
    Matrix part = whole.part(first, std::min(most, whole.rows - first));
    const Matrix in_file = part;
    if (weights_.embedding_on_disk && !backend_.host_memory()) {
      if (resident.size() == 0) resident = backend_.allocate(static_cast<size_t>(part.bytes()));  // the largest part
      backend_.upload(part.data, static_cast<size_t>(part.bytes()), resident.data());
      part.data = resident.data();
    }
    const Product product = {x, rows, &part, logits + first, whole.rows};
    backend_.matmul({&product, 1});
    if (weights_.embedding_on_disk) model_.mapping->drop(in_file.data, in_file.bytes());
  }
  if (config_.final_softcap > 0) {
    backend_.softcap(static_cast<float>(config_.final_softcap), rows, whole.rows, logits);
  }
}

// Of each text: the mean of its normed tokens, then the dense matrices.
void ForwardPass::embeddings() {
  const int64_t hidden = config_.hidden_size, texts = static_cast<int64_t>(parts_.size());
  backend_.rms_norm(residual_, weights_.final_norm, eps_, rows_, hidden, normed_);
  tap("final_norm", normed_, hidden);
  float* const means = take(Region::kTextMeans, hidden);
  for (const Part& part : parts_) {
    std::vector<int32_t> places(static_cast<size_t>(part.rows));
    std::iota(places.begin(), places.end(), static_cast<int32_t>(part.row));
    const std::vector<float> shares(places.size(), 1.0f / static_cast<float>(part.rows));
    backend_.combine(normed_, places, shares, part.rows, hidden, means + part.output * hidden);
  }
  const float* x = means;
  const int64_t outputs = std::accumulate(config_.dense_sizes.begin(), config_.dense_sizes.end(), int64_t{0});
  float* y = model_.scratch.take(Region::kDenseOutputs, texts * outputs);
  for (const Matrix& dense : weights_.dense) {
    const Product product = {x, texts, &dense, y};
    backend_.matmul({&product, 1});
    x = y;
    y += texts * dense.rows;
  }
  const int64_t floats = texts * config_.embedding_size();
  backend_.download(x, static_cast<size_t>(floats) * sizeof(float), batch_.embeddings);
}

}  // namespace gemlet
