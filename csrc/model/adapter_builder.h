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

  // A [rank, cols] and B [rows, rank], in memory, of the matrix that ModelBuilder calls `slot` ("layers.3.q_proj").
  // `magnitudes` [rows] are DoRA's, empty for plain LoRA: the lengths that the rows of the corrected matrix get.
  // Throws kTensor if an adapter cannot change that matrix, for a shape that does not fit and for values that are not
  // finite; kMemory.
  void add(const std::string& slot, const SourceRows& a, const SourceRows& b, float scale,
           std::span<const float> magnitudes = {});

  std::shared_ptr<Adapter> finish();  // the builder cannot be used afterwards

 private:
  struct Place;
  void find_places(const ModelWeights& weights);
  // `balance`: what the columns of the model's matrix were multiplied by, or null.
  Matrix pack(const std::string& what, const SourceRows& source, const Balance* balance);
  const float* keep(std::span<const float> values);

  std::shared_ptr<Model> model_;
  std::shared_ptr<Adapter> adapter_;
  std::map<std::string, Place> places_;  // of the matrices that an adapter can change, by slot
  Format format_;
  int64_t available_bytes_;
};

}  // namespace gemlet
