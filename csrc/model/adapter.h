// LoRA adapters (Hu et al. 2021, arXiv 2106.09685). An adapter adds a low-rank term to a model's matrices: y = W x +
// scale * B (A x). The weights W stay unchanged, in any format. Any number of adapters can be in memory. Each sequence
// uses one adapter or none.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <unordered_map>
#include <vector>

#include "backend/device_memory.h"
#include "base/error.h"
#include "formats/formats.h"
#include "formats/row_table.h"

namespace gemlet {

class Model;

// The kinds of matrices that an adapter may change. Each kind has an index: the layer, the stream of AltUp, or 0. For
// expert number e the index is layer + e * layers.
enum class Target : uint8_t {
  kQProj,
  kKProj,
  kVProj,
  kOProj,
  kGateProj,
  kUpProj,
  kDownProj,
  kRouterProj,
  kPerLayerInputGate,
  kPerLayerProjection,
  kAltupRouter,
  kAltupPrediction,
  kAltupCorrection,
  kLaurelLeft,
  kLaurelRight,
  kPerLayerModelProjection,
  kAltupProjection,
  kAltupUnembedProjection,
  kExpertGateUp,
  kExpertDown,
  kEmbedTokens,
  kPerLayerTable,
  kLmHead,
  kCount,
};

// The term that an adapter adds to one matrix [rows, cols]. For a table (kEmbedTokens, kPerLayerTable) the term is
// added to the table's transpose.
struct LowRank {
  Matrix a;  // [rank, cols]; for a table [tokens, rank], so that it can be read by row
  Matrix b;  // [rows, rank]; of a table [its columns, rank]. One column more is a bias, which is added to B (A x)
  float scale = 0;
  const float* gain = nullptr;     // [rows] of DoRA (Liu et al. 2024, arXiv 2402.09353): it multiplies the corrected y;
                                   // of the embedding table [hidden]
  const float* changed = nullptr;  // only for AltUp's coefficients: the corrected matrix, instead of all the above
};

// Rows that replace rows of the embedding table or of the output head. If there is also a low-rank term, it is added to
// these rows.
struct OwnRows {
  Matrix rows;               // [ids or vocab, hidden], in the format of the replaced matrix
  std::vector<int32_t> ids;  // the tokens of the rows, in ascending order; empty: all tokens
  bool empty() const { return rows.empty(); }
};

// Rows that replace rows of the table of per-layer embeddings. They are read from the adapter's file.
struct OwnTable {
  RowTable rows;
  // token -> its row; empty: every token has a row, as in the model's table
  std::unordered_map<int32_t, int32_t> places;
};

// The format of an adapter's matrices for a model with this weight format.
inline Format adapter_format(Format weights) { return weights == Format::kF32 ? Format::kF32 : Format::kBf16; }

// An adapter of one model, made by AdapterBuilder. All sequences that use it share it. It is freed together with the
// last of them. `total` counts the bytes of all adapters of the model.
class Adapter {
 public:
  Adapter(std::shared_ptr<const Model> model, std::shared_ptr<std::atomic<int64_t>> total)
      : model_(std::move(model)), total_(std::move(total)) {}
  ~Adapter() { *total_ -= bytes_; }
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  // Throws kInvalidRequest if the adapter belongs to another model.
  void check_model(const Model& model) const {
    if (model_.get() != &model) {
      fail(ErrorCode::kInvalidRequest, "the adapter belongs to another model; load it with this one");
    }
  }
  // Returns null if the adapter does not change the matrix.
  const LowRank* term(Target target, size_t index) const {
    const size_t place = place_of(target, index);
    return place < terms_.size() ? terms_[place].get() : nullptr;
  }
  // The same for a matrix of a vision or audio tower.
  const LowRank* tower_term(const Matrix& weight) const {
    const auto found = tower_terms_.find(weight.data);
    return found == tower_terms_.end() ? nullptr : found->second.get();
  }
  // Returns the adapter's own weight of a norm. If the adapter has none, returns the model's weight `of_model`.
  const float* norm(const float* of_model) const {
    const auto found = norms_.find(of_model);
    return found == norms_.end() ? of_model : found->second;
  }
  const OwnRows& embedding_rows() const { return embedding_rows_; }
  const OwnRows& head_rows() const { return head_rows_; }
  // The rows are empty if the adapter has none.
  const OwnTable& per_layer_table() const { return per_layer_table_; }
  int64_t max_rank() const { return max_rank_; }  // the highest rank of a term in the text model; at least 1
  int64_t bytes() const { return bytes_; }
  // a digest of the adapter's content; zeros: not known
  const std::array<uint8_t, 32>& digest() const { return digest_; }

 private:
  friend class AdapterBuilder;
  static size_t place_of(Target target, size_t index) {
    return index * static_cast<size_t>(Target::kCount) + static_cast<size_t>(target);
  }
  std::shared_ptr<const Model> model_;
  std::vector<std::unique_ptr<LowRank>> terms_;
  std::unordered_map<const uint8_t*, std::unique_ptr<LowRank>> tower_terms_;  // key: the data of the model's matrix
  std::unordered_map<const float*, const float*> norms_;                      // key: the model's weight
  OwnRows embedding_rows_, head_rows_;
  OwnTable per_layer_table_;
  std::vector<DeviceMemory> storage_;
  std::shared_ptr<std::atomic<int64_t>> total_;
  int64_t bytes_ = 0;
  std::array<uint8_t, 32> digest_ = {};
  int64_t max_rank_ = 1;
};

}  // namespace gemlet
