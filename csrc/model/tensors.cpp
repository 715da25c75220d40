#include "model/tensors.h"

#include "base/error.h"
#include "formats/source_rows.h"

namespace gemlet {

Matrix Tensors::matrix(const std::string& name, int64_t rows, int64_t cols) const {
  const auto found = matrices_.find(name);
  if (found == matrices_.end()) fail(ErrorCode::kTensor, "the model has no matrix '", name, "'");
  const Matrix& matrix = found->second;
  if (matrix.rows != rows || matrix.cols != cols) {
    fail(ErrorCode::kTensor, "matrix '", name, "' is ", shape_text({matrix.rows, matrix.cols}), ", expected ",
         shape_text({rows, cols}));
  }
  return matrix;
}

const float* Tensors::floats(const std::string& name, const std::vector<int64_t>& shape) const {
  const auto found = floats_.find(name);
  if (found == floats_.end()) fail(ErrorCode::kTensor, "the model has no tensor '", name, "'");
  if (found->second.shape != shape) {
    fail(ErrorCode::kTensor, "tensor '", name, "' is ", shape_text(found->second.shape), ", expected ",
         shape_text(shape));
  }
  return found->second.data;
}

}  // namespace gemlet
