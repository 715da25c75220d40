// The last step for images and sound: a norm and a projection into the text model.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "model/adapter.h"
#include "model/model.h"

namespace gemlet {

// The norm and projection for one kind of media, "vision" or "audio".
class Modality {
 public:
  // Rows have `width` floats. With `table_rows` it is that of a Gemma 3n, which has a table, norms with weights before
  // the projection, and a norm without weights after it. Throws kConfig, and kTensor if a weight is missing or has
  // another shape.
  Modality(std::shared_ptr<Model> model, const std::string& name, int64_t width, int64_t table_rows, double eps);

  const Model& model() const { return *model_; }
  int64_t width() const { return width_; }
  int64_t hidden_size() const { return model_->config().hidden_size; }

  // Projects values [rows, width] without a table: out [rows, hidden_size()].
  void project(const float* values, int64_t rows, float* out, const Adapter* adapter = nullptr) const;
  // Projects rows of the table: out [indices, hidden_size()]. Throws kInvalidRequest for an index that it does not
  // have.
  void embed(std::span<const int32_t> indices, float* out, const Adapter* adapter = nullptr) const;

 private:
  void finish(Backend& backend, float* x, int64_t rows, float* out, const Adapter* adapter) const;

  std::shared_ptr<Model> model_;
  int64_t width_, table_rows_;
  float eps_;
  const float* table_ = nullptr;  // [table_rows, width]
  const float* norm_ = nullptr;   // [width]
  Matrix projection_;
};

}  // namespace gemlet
