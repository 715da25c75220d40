// Builds an adapter matrix by matrix, as f32 for a model with f32 weights and as bf16 for all others. It works on the
// calling thread, so that forward passes go on meanwhile.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "formats/source_rows.h"
#include "model/adapter.h"
#include "model/balance.h"
#include "model/weights.h"

namespace gemlet {

class AdapterBuilder {
 public:
  explicit AdapterBuilder(std::shared_ptr<Model> model);  // throws kClosed
  ~AdapterBuilder();

  // Adds A [rank, cols] and B [rows, rank], in memory, to the matrix that ModelBuilder calls `slot`
  // ("layers.3.q_proj"). `magnitudes` [rows] are for DoRA: the lengths that the rows of the corrected matrix get. For
  // plain LoRA and for the table of per-layer embeddings they are empty. `bias` [rows] is added to B (A x); it may be
  // empty. Throws kTensor if an adapter cannot change that matrix, for a shape that does not fit, and for values that
  // are not finite. Throws kMemory if the memory is not there.
  void add(const std::string& slot, const SourceRows& a, const SourceRows& b, float scale,
           std::span<const float> magnitudes = {}, std::span<const float> bias = {});

  // Adds the next rows that replace rows of the embedding table ("embed_tokens") or of the output head ("lm_head").
  // They are in memory or in a file. They replace the rows of the tokens `ids`, which ascend, or of all tokens if `ids`
  // is empty. Each call except the last has a multiple of 16 rows. Throws the errors of add(), and kModelFile.
  void add_rows(const std::string& slot, const SourceRows& source, std::span<const int32_t> ids = {});

  // Replaces the weight of the norm `slot` by `weight` [dim] + the norm_offset of the model. Throws the errors of
  // add().
  void add_norm(const std::string& slot, std::vector<float> weight);
  // Replaces the table of per-layer embeddings, or its rows of the tokens `ids`, in this order. Throws kTensor.
  void set_per_layer_table(RowTable table, std::span<const int32_t> ids = {});

  // Returns the matrix `slot` [rows, cols] of the text model, as it would be without a balance. Throws kTensor.
  std::vector<float> weight(const std::string& slot, int64_t* rows, int64_t* cols);

  void share_rows();  // the output head takes the rows that replace those of the embedding table
  int64_t rows_bytes(const std::string& slot, int64_t count) const;  // bytes that add_rows() keeps for `count` rows
  // The bytes that a pass of a tower needs in addition for a term of this rank, which counts a bias; 0 for a matrix of
  // the text model.
  int64_t tower_bytes(const std::string& slot, int64_t rank) const;

  // The builder cannot be used afterwards. `digest` is the digest of the adapter's content, or zeros if it is not
  // known.
  std::shared_ptr<Adapter> finish(const std::array<uint8_t, 32>& digest = {});

 private:
  struct Place;
  struct Norm;
  std::unique_ptr<LowRank>& term_of(const Place& place);
  void find_places(const ModelWeights& weights);
  void find_norms(const ModelWeights& weights);
  Matrix allocate(Format format, int64_t rows, int64_t cols);
  // `balance` has the factors by which the columns of the model's matrix were multiplied; null if there are none.
  void pack(const std::string& what, const SourceRows& source, const Matrix& matrix, int64_t first_row = 0,
            const Balance* balance = nullptr);
  const float* keep(std::span<const float> values);
  std::vector<float> table_gains(const Place& place, std::span<const float> a, std::span<const float> b, float scale,
                                 std::span<const float> magnitudes) const;

  std::shared_ptr<Model> model_;
  std::shared_ptr<Adapter> adapter_;
  std::map<std::string, int64_t> rows_filled_;  // the number of rows that add_rows() has filled
  std::map<std::string, Place> places_;         // the matrices that an adapter can change; key: the slot
  std::map<std::string, Norm> norms_;           // the norms that an adapter can change; key: the slot
  Format format_;
  int64_t available_bytes_;
};

}  // namespace gemlet
