// Products with the matrices of towers, including the terms of an adapter.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "model/adapter.h"

namespace gemlet {

// The buffers are kept for the next products.
class TowerProducts {
 public:
  explicit TowerProducts(const Adapter* adapter) : adapter_(adapter) {}  // null: none

  // y = W x. If the adapter changes W, also y += scale * (B (A x) + bias), and then DoRA's gain.
  void multiply(Backend& backend, std::span<const Product> products);
  void multiply(Backend& backend, const Product& product) { multiply(backend, {&product, 1}); }

  // Bytes of one pass for the term of a matrix [rows, cols] whose B has `low` columns.
  static int64_t bytes(int64_t rows, int64_t cols, int64_t low, Format adapter_format, const Backend& backend);

 private:
  void correct(Backend& backend, const LowRank& term, const float* x, int64_t rows, float* y);

  const Adapter* adapter_;
  DeviceMemory memory_;
  int64_t floats_ = 0;
};

}  // namespace gemlet
