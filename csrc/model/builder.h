// Builds a Model tensor by tensor: each tensor given is checked, packed into its format on all threads, and can then be let
// go, so loading never holds more than the packed model and one source tensor.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/model.h"

namespace gemlet {

enum class SourceType : uint8_t { kF32, kBf16, kF16 };

class ModelBuilder {
 public:
  // Allocates all weights. Throws kConfig for a bad configuration, kMemory if they do not fit.
  ModelBuilder(ModelConfig config, Format weights, Format embedding, KvFormat kv_format, std::unique_ptr<Backend> backend);

  struct Slot {
    std::vector<int64_t> shape;     // [rows, cols] of a matrix, [dim] of a norm
    Matrix* matrix = nullptr;       // one of the two is set
    const float** norm = nullptr;
    uint8_t* storage = nullptr;
    int64_t rows_filled = 0;        // rows of a matrix; a norm is one row
    int64_t rows() const { return matrix ? shape[0] : 1; }
    bool filled() const { return rows_filled == rows(); }
  };
  const std::map<std::string, Slot>& slots() const { return slots_; }

  // Fills a slot from row-major data: a whole tensor, or the next rows of a matrix (a multiple of 16 but at the end), so that
  // a large table passes through a small buffer. Throws kTensor for an unknown name, a wrong shape, rows out of turn, or
  // values that are not finite in the slot's format.
  void add(const std::string& name, const std::vector<int64_t>& shape, const void* data, SourceType type,
           int64_t first_row = 0);

  // Fills every empty slot with random values of the size trained weights have.
  void add_random(uint64_t seed);

  // Throws kTensor if a slot is empty. The builder is spent afterwards.
  std::unique_ptr<Model> finish();

 private:
  template <typename ReadRows>
  void fill(const std::string& name, Slot& slot, int64_t first_row, int64_t row_count, const ReadRows& read_rows);
  void declare_matrix(const std::string& name, int64_t rows, int64_t cols, Format format, Matrix* matrix);
  void declare_norm(const std::string& name, int64_t dim, const float** norm);

  ModelConfig config_;
  Format weight_format_;
  KvFormat kv_format_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  std::vector<AlignedBuffer> storage_;
  std::map<std::string, Slot> slots_;
  bool finished_ = false;
};

}  // namespace gemlet
