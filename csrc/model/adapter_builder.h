// Builds an adapter matrix by matrix, as f32 for a model with f32 weights and as bf16 for all others. It works on the
// calling thread, so that forward passes go on meanwhile.
#pragma once

#include <memory>
#include <string>

#include "formats/source_rows.h"
#include "model/adapter.h"

namespace gemlet {

class AdapterBuilder {
 public:
  explicit AdapterBuilder(std::shared_ptr<Model> model);  // throws kClosed

  // A [rank, cols] and B [rows, rank], in memory, of the matrix that ModelBuilder calls `slot` ("layers.3.q_proj").
  // Throws kTensor if an adapter cannot change that matrix, for a shape that does not fit and for values that are not
  // finite; kMemory.
  void add(const std::string& slot, const SourceRows& a, const SourceRows& b, float scale);

  std::shared_ptr<Adapter> finish();  // the builder cannot be used afterwards

 private:
  Matrix pack(const std::string& what, const SourceRows& source);

  std::shared_ptr<Model> model_;
  std::shared_ptr<Adapter> adapter_;
  Format format_;
  int64_t available_bytes_;
};

}  // namespace gemlet
