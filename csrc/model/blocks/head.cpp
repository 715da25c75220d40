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
    norm(residual_, weights_.final_norm, normed_);
    tap("final_norm", normed_, hidden);
  }
  std::vector<int32_t> rows(static_cast<size_t>(wanted_));  // the row in the pass for each row of logits
  for (const Part& part : parts_) {
    std::iota(rows.begin() + part.output, rows.begin() + part.output + part.wanted,
              static_cast<int32_t>(part.row + part.rows - part.wanted));
  }
  float* const x = take(Region::kHeadInput, hidden);
  backend_.gather(residual_, rows, hidden, x);
  by_norm(weights_.final_norm, wanted_, output_runs(0, wanted_), [&](const float* own, int64_t row, int64_t count) {
    backend_.rms_norm(x + row * hidden, own, eps_, count, hidden, x + row * hidden);
  });
  if (config_.target_size > 0) {
    guess(x);
    if (config_.centroids > 0) return;
  } else if (batch_.states) {
    backend_.download(x, static_cast<size_t>(wanted_ * hidden) * sizeof(float), batch_.states);
  }
  if (backend_.host_memory()) return multiply_head(x, 0, wanted_, batch_.logits);
  // Memory that is not the host's holds the logits of some rows at a time.
  const int64_t row_bytes = config_.vocab_size * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::min(wanted_, std::max<int64_t>(1, kResidentLogitsBytes / row_bytes));
  DeviceMemory logits = backend_.allocate(static_cast<size_t>(most * row_bytes));
  for (int64_t first = 0; first < wanted_; first += most) {
    const int64_t count = std::min(most, wanted_ - first);
    multiply_head(x + first * hidden, first, count, logits.as<float>());
    backend_.download(logits.data(), static_cast<size_t>(count * row_bytes),
                      batch_.logits + first * config_.vocab_size);
  }
}

std::vector<ForwardPass::AdapterRun> ForwardPass::output_runs(int64_t first, int64_t rows) const {
  std::vector<AdapterRun> found;
  for (const Part& part : parts_) {
    const int64_t begin = std::max<int64_t>(part.output - first, 0);
    const int64_t end = std::min(part.output + part.wanted - first, rows);
    const Adapter* const adapter = part.segment->adapter;
    if (adapter && begin < end) found.push_back({adapter, begin, end - begin});
  }
  std::sort(found.begin(), found.end(), [](const AdapterRun& a, const AdapterRun& b) { return a.row < b.row; });
  return found;
}

void ForwardPass::multiply_head(const float* x, int64_t first_row, int64_t rows, float* logits) {
  const Matrix& whole = weights_.lm_head;
  const std::vector<AdapterRun> adapted = output_runs(first_row, rows);
  std::vector<AdapterRun> plain;  // the rows that the model's own head is for
  int64_t next = 0;
  for (const AdapterRun& run : adapted) {
    const OwnRows& own = run.adapter->head_rows();
    if (own.empty() || !own.ids.empty()) continue;
    if (next < run.row) plain.push_back({nullptr, next, run.row - next});
    next = run.row + run.rows;
  }
  if (next < rows) plain.push_back({nullptr, next, rows - next});
  // A head on disk is read in runs of as many pairs of panels as may be resident. Kernels in tiles take panels in
  // pairs.
  const int64_t pair_bytes = 2 * panel_bytes(whole.format, whole.cols);
  const int64_t most = weights_.embedding_on_disk
                           ? std::max<int64_t>(1, kResidentEmbeddingBytes / pair_bytes) * 2 * kPanelRows
                           : whole.rows;
  DeviceMemory resident;
  for (int64_t first = 0; first < whole.rows && !plain.empty(); first += most) {
    Matrix part = whole.part(first, std::min(most, whole.rows - first));
    const Matrix in_file = part;
    if (weights_.embedding_on_disk && !backend_.host_memory()) {
      if (resident.size() == 0) resident = backend_.allocate(static_cast<size_t>(part.bytes()));  // the largest part
      backend_.upload(part.data, static_cast<size_t>(part.bytes()), resident.data());
      part.data = resident.data();
    }
    products_.clear();
    for (const AdapterRun& run : plain) {
      const float* const from = x + run.row * whole.cols;
      products_.push_back({from, run.rows, &part, logits + run.row * whole.rows + first, whole.rows});
    }
    backend_.matmul(products_);
    if (weights_.embedding_on_disk) model_.mapping->drop(in_file.data, in_file.bytes());
  }
  for (const AdapterRun& run : adapted) adapt_head(run, x + run.row * whole.cols, logits + run.row * whole.rows);
  if (config_.final_softcap > 0) {
    backend_.softcap(static_cast<float>(config_.final_softcap), rows, whole.rows, logits);
  }
}

// Applies an adapter to the logits of its rows. The buffers have room for some of the vocabulary at a time.
void ForwardPass::adapt_head(const AdapterRun& run, const float* x, float* logits) {
  const int64_t vocab = weights_.lm_head.rows;
  const int64_t most = std::max<int64_t>(1, config_.hidden_size / kPanelRows) * kPanelRows;
  float* const some = model_.scratch.take(Region::kAdapterDelta, run.rows * most);
  const OwnRows& own = run.adapter->head_rows();
  if (!own.empty() && own.ids.empty()) {
    const Product product = {x, run.rows, &own.rows, logits};
    backend_.matmul({&product, 1});
  }
  const auto count = static_cast<int64_t>(own.ids.size());
  for (int64_t first = 0; first < count; first += most) {
    const Matrix part = own.rows.part(first, std::min(most, count - first));
    const Product product = {x, run.rows, &part, some};
    backend_.matmul({&product, 1});
    for (int64_t row = 0; row < run.rows; ++row) {
      for (int64_t i = 0; i < part.rows; ++i) {
        backend_.copy(some + row * part.rows + i, 1, logits + row * vocab + own.ids[static_cast<size_t>(first + i)]);
      }
    }
  }
  if (const LowRank* const term = run.adapter->term(Target::kLmHead, 0)) {
    float* const low = model_.scratch.take(Region::kAdapterLow, run.rows * term->b.cols);
    products_.clear();
    push_low(*term, x, run.rows, low);
    backend_.matmul(products_);
    backend_.scale(term->scale, run.rows * term->b.cols, low);
    for (int64_t first = 0; first < vocab; first += most) {
      const Matrix part = term->b.part(first, std::min(most, vocab - first));
      const Product up = {low, run.rows, &part, some};
      backend_.matmul({&up, 1});
      for (int64_t row = 0; row < run.rows; ++row) {
        backend_.add_branch(some + row * part.rows, nullptr, eps_, 1, part.rows, logits + row * vocab + first);
      }
    }
    if (term->gain) backend_.mul_rows(logits, term->gain, run.rows, vocab, logits);
  }
}

// Takes the mean of each text's normed tokens, then multiplies it with the dense matrices.
void ForwardPass::embeddings() {
  const int64_t hidden = config_.hidden_size, texts = static_cast<int64_t>(parts_.size());
  norm(residual_, weights_.final_norm, normed_);
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
  for (size_t i = 0; i < weights_.dense.size(); ++i) {
    const Matrix& dense = weights_.dense[i];
    std::vector<Correction> corrections;
    for (const Part& part : parts_) {
      const Adapter* const adapter = part.segment->adapter;
      const LowRank* const term = adapter ? adapter->term(Target::kLmHead, i) : nullptr;
      if (term) corrections.push_back({term, x + part.output * dense.cols, y + part.output * dense.rows, 1});
    }
    products_.assign(1, {x, texts, &dense, y});
    multiply(corrections);
    x = y;
    y += texts * dense.rows;
  }
  const int64_t floats = texts * config_.embedding_size();
  backend_.download(x, static_cast<size_t>(floats) * sizeof(float), batch_.embeddings);
}

}  // namespace gemlet
