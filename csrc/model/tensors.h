// Weights of vision and audio towers, by name. The forward pass of the text model does not use them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "formats/formats.h"

namespace gemlet {

enum class TensorKind : uint8_t {
  kMatrix,  // packed in the format of the weights; the first dimension is its rows, and all others together are its
            // columns
  kExact,   // a matrix that is packed in f32
  kFloats,  // kept in float32
  kNorm,    // kept in float32, with the model's norm_offset added
};

struct TensorSpec {
  std::vector<int64_t> shape;  // the shape in the checkpoint
  TensorKind kind = TensorKind::kFloats;
};

// ModelBuilder fills this object. It owns no memory.
class Tensors {
 public:
  struct Floats {
    std::vector<int64_t> shape;
    const float* data = nullptr;  // points into the backend's memory
  };

  bool has(const std::string& name) const { return matrices_.count(name) > 0 || floats_.count(name) > 0; }
  // These functions throw kTensor if there is no such tensor, or if it has another shape.
  Matrix matrix(const std::string& name, int64_t rows, int64_t cols) const;
  const float* floats(const std::string& name, const std::vector<int64_t>& shape) const;

  const std::map<std::string, Matrix>& matrices() const { return matrices_; }

  Matrix& make_matrix(const std::string& name) { return matrices_[name]; }  // the matrix keeps its address
  Floats& make_floats(const std::string& name) { return floats_[name]; }

 private:
  std::map<std::string, Matrix> matrices_;
  std::map<std::string, Floats> floats_;
};

}  // namespace gemlet
