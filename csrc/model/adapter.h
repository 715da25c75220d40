// LoRA adapters (Hu et al. 2021, arXiv 2106.09685): low-rank corrections of a model's matrices, kept beside the weights
// in whatever format these are: y = W x + scale * B (A x). Any number of adapters can be in memory. Each sequence has
// one or none.
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

// The matrices that an adapter may correct. Matrices of one kind have an index: the layer, the stream of AltUp, or 0.
// The index of an expert is the layer + its number * the number of layers.
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

// The term that an adapter adds to one matrix [rows, cols]. For a table (kEmbedTokens, kPerLayerTable), it adds to the
// transpose.
struct LowRank {
  Matrix a;  // [rank, cols]; of a table [tokens, rank], to be read by row
  Matrix b;  // [rows, rank]; of a table [its columns, rank]. One column more is a bias, which is added to B (A x)
  float scale = 0;
  const float* gain = nullptr;     // [rows] of DoRA (Liu et al. 2024, arXiv 2402.09353): it multiplies the corrected y;
                                   // of the embedding table [hidden]
  const float* changed = nullptr;  // only for AltUp's coefficients: the corrected matrix, instead of all the above
};

// Rows that replace those of the embedding table or of the output head. The low-rank term, if there is one, is added to
// them.
struct OwnRows {
  Matrix rows;               // [ids or vocab, hidden], in the format of the matrix that they replace
  std::vector<int32_t> ids;  // the tokens that the rows belong to, ascending; empty: all tokens
  bool empty() const { return rows.empty(); }
};

// Rows that replace those of the table of per-layer embeddings. They stay in the adapter's file.
struct OwnTable {
  RowTable rows;
  std::unordered_map<int32_t, int32_t> places;  // token -> its row; empty: every token, as in the model's table
};

// The format of an adapter's matrices, by that of the model's weights.
inline Format adapter_format(Format weights) { return weights == Format::kF32 ? Format::kF32 : Format::kBf16; }

// An adapter of one model, made by AdapterBuilder. The sequences that use it share it, and it is freed with the last of
// them. `total` counts the bytes of all adapters of the model.
class Adapter {
 public:
  Adapter(std::shared_ptr<const Model> model, std::shared_ptr<std::atomic<int64_t>> total)
      : model_(std::move(model)), total_(std::move(total)) {}
  ~Adapter() { *total_ -= bytes_; }
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  // Throws kInvalidRequest if it is an adapter of another model.
  void check_model(const Model& model) const {
    if (model_.get() != &model) {
      fail(ErrorCode::kInvalidRequest, "the adapter belongs to another model; load it with this one");
    }
  }
  // Null where the adapter leaves the matrix as it is.
  const LowRank* term(Target target, size_t index) const {
    const size_t place = place_of(target, index);
    return place < terms_.size() ? terms_[place].get() : nullptr;
  }
  // The same of a matrix of a tower.
  const LowRank* tower_term(const Matrix& weight) const {
    const auto found = tower_terms_.find(weight.data);
    return found == tower_terms_.end() ? nullptr : found->second.get();
  }
  // The adapter's own weight of a norm, or the model's, which is `of_model`.
  const float* norm(const float* of_model) const {
    const auto found = norms_.find(of_model);
    return found == norms_.end() ? of_model : found->second;
  }
  const OwnRows& embedding_rows() const { return embedding_rows_; }
  const OwnRows& head_rows() const { return head_rows_; }
  // Its rows are empty if the adapter has none.
  const OwnTable& per_layer_table() const { return per_layer_table_; }
  int64_t max_rank() const { return max_rank_; }  // rank of the text model's terms; it is at least 1
  int64_t bytes() const { return bytes_; }
  // A digest of its content; zeros: not known.
  const std::array<uint8_t, 32>& digest() const { return digest_; }

 private:
  friend class AdapterBuilder;
  static size_t place_of(Target target, size_t index) {
    return index * static_cast<size_t>(Target::kCount) + static_cast<size_t>(target);
  }
  std::shared_ptr<const Model> model_;
  std::vector<std::unique_ptr<LowRank>> terms_;
  std::unordered_map<const uint8_t*, std::unique_ptr<LowRank>> tower_terms_;  // key: the data of the matrix
  std::unordered_map<const float*, const float*> norms_;                      // key: the weight of the model
  OwnRows embedding_rows_, head_rows_;
  OwnTable per_layer_table_;
  std::vector<DeviceMemory> storage_;
  std::shared_ptr<std::atomic<int64_t>> total_;
  int64_t bytes_ = 0;
  std::array<uint8_t, 32> digest_ = {};
  int64_t max_rank_ = 1;
};

}  // namespace gemlet
