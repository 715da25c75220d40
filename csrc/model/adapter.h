// LoRA adapters (Hu et al. 2021, arXiv 2106.09685): low-rank corrections of a layer's matrices that stay beside the
// weights, whatever format those have: y = W x + scale * B (A x). Any number of them can be resident; each sequence has
// one or none.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "formats/formats.h"

namespace gemlet {

class Model;
struct SourceRows;

// What an adapter adds to one matrix [rows, cols].
struct LowRank {
  Matrix a;  // [rank, cols]
  Matrix b;  // [rows, rank]
  float scale = 0;
  bool empty() const { return a.empty(); }
};

// Empty where the adapter leaves a matrix as it is.
struct LayerAdapter {
  LowRank q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

// An adapter of one model; shared by the sequences that use it, and freed with the last of them.
class Adapter {
 public:
  const Model& model() const { return *model_; }
  const LayerAdapter& layer(size_t index) const { return layers_[index]; }
  int64_t max_rank() const { return max_rank_; }
  int64_t bytes() const;
  ~Adapter();

 private:
  friend class AdapterBuilder;
  std::shared_ptr<Model> model_;
  std::vector<LayerAdapter> layers_;
  std::vector<AlignedBuffer> storage_;
  int64_t max_rank_ = 0;
};

// Packs an adapter matrix by matrix, as f32 for a model with f32 weights and as bf16 for all others, on the calling
// thread: forward passes go on meanwhile.
class AdapterBuilder {
 public:
  explicit AdapterBuilder(std::shared_ptr<Model> model);  // throws kClosed

  // A [rank, cols] and B [rows, rank], in memory, of the matrix that ModelBuilder calls `slot` ("layers.3.q_proj").
  // Throws kTensor if an adapter cannot have it, for a shape that does not fit, and for values that are not finite;
  // kMemory.
  void add(const std::string& slot, const SourceRows& a, const SourceRows& b, float scale);

  std::shared_ptr<Adapter> finish();  // the builder is spent afterwards

 private:
  Matrix pack(const std::string& what, const SourceRows& source);

  std::shared_ptr<Model> model_;
  std::shared_ptr<Adapter> adapter_;
  Format format_;
  int64_t available_bytes_;
};

}  // namespace gemlet
