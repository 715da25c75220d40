#include "model/tower_products.h"

#include <algorithm>
#include <vector>

namespace gemlet {
namespace {

constexpr int64_t kRows = 512;  // that are corrected at a time

}  // namespace

void TowerProducts::multiply(Backend& backend, std::span<const Product> products) {
  backend.matmul(products);
  if (!adapter_) return;
  for (const Product& product : products) {
    const LowRank* const term = adapter_->tower_term(*product.weight);
    if (!term) continue;
    for (int64_t row = 0; row < product.rows; row += kRows) {
      correct(backend, *term, product.x + row * product.weight->cols, std::min(kRows, product.rows - row),
              product.y + row * product.weight->rows);
    }
  }
}

void TowerProducts::correct(Backend& backend, const LowRank& term, const float* x, int64_t rows, float* y) {
  const int64_t low_dim = term.b.cols, dim = term.b.rows;
  if (floats_ < rows * (low_dim + dim)) {
    floats_ = rows * (low_dim + dim);
    memory_ = DeviceMemory();
    memory_ = backend.allocate(static_cast<size_t>(floats_) * sizeof(float));
  }
  float* const low = memory_.as<float>();
  float* const delta = low + rows * low_dim;
  if (low_dim > term.a.rows) {  // the column of a bias
    const std::vector<float> ones(static_cast<size_t>(rows * low_dim), 1.0f);
    backend.upload(ones.data(), ones.size() * sizeof(float), low);
  }
  const Product inner = {x, rows, &term.a, low, low_dim};
  backend.matmul({&inner, 1});
  backend.scale(term.scale, rows * low_dim, low);
  const Product outer = {low, rows, &term.b, delta};
  backend.matmul({&outer, 1});
  backend.add_branch(delta, nullptr, 0, rows, dim, y);
  if (term.gain) backend.mul_rows(y, term.gain, rows, dim, y);
}

int64_t TowerProducts::bytes(int64_t rows, int64_t cols, int64_t low, Format adapter_format, const Backend& backend) {
  return kRows * (low + rows) * static_cast<int64_t>(sizeof(float)) +
         std::max(backend.prepared_bytes({adapter_format, low, cols}, kRows),
                  backend.prepared_bytes({adapter_format, rows, low}, kRows));
}

}  // namespace gemlet
