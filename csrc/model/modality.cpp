#include "model/modality.h"

#include <algorithm>

#include "base/error.h"
#include "model/tower_products.h"

namespace gemlet {
namespace {

constexpr int64_t kRowsAtOnce = 1024;

size_t bytes_of(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }

}  // namespace

Modality::Modality(std::shared_ptr<Model> model, const std::string& name, int64_t width, int64_t table_rows, double eps)
    : model_(std::move(model)), width_(width), table_rows_(table_rows), eps_(static_cast<float>(eps)) {
  if (width < 1) fail(ErrorCode::kConfig, name, ": width is ", width, ", expected 1 or more");
  if (table_rows < 0) fail(ErrorCode::kConfig, name, ": table_rows is ", table_rows, ", expected 0 or more");
  if (!(eps > 0 && eps < 1)) {
    fail(ErrorCode::kConfig, name, ": eps is ", eps, ", expected a number between 0 and 1");
  }
  model_->read_weights([&](const ModelWeights&) {
    const Tensors& tensors = model_->towers();
    projection_ = tensors.matrix(name + ".projection", hidden_size(), width);
    if (table_rows == 0) return;
    table_ = tensors.floats(name + ".hard_embedding", {table_rows, width});
    norm_ = tensors.floats(name + ".hard_norm", {width});
  });
}

void Modality::finish(Backend& backend, float* x, int64_t rows, float* out, const Adapter* adapter) const {
  DeviceMemory memory = backend.allocate(bytes_of(rows * hidden_size()));
  float* const projected = memory.as<float>();
  backend.rms_norm(x, norm_, eps_, rows, width_, x);
  const Product product = {x, rows, &projection_, projected};
  TowerProducts(adapter).multiply(backend, product);
  if (table_rows_ > 0) backend.rms_norm(projected, nullptr, eps_, rows, hidden_size(), projected);
  backend.download(projected, bytes_of(rows * hidden_size()), out);
}

void Modality::project(const float* values, int64_t rows, float* out, const Adapter* adapter) const {
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, rows - row);
    model_->run(count, [&](Backend& backend) {
      DeviceMemory memory = backend.allocate(bytes_of(count * width_));
      backend.upload(values + row * width_, bytes_of(count * width_), memory.data());
      finish(backend, memory.as<float>(), count, out + row * hidden_size(), adapter);
    });
  }
}

void Modality::embed(std::span<const int32_t> indices, float* out, const Adapter* adapter) const {
  for (const int32_t index : indices) {
    if (index < 0 || index >= table_rows_) {
      fail(ErrorCode::kInvalidRequest, "row ", index, " is not in the table, expected 0 to ", table_rows_ - 1);
    }
  }
  const auto count = static_cast<int64_t>(indices.size());
  for (int64_t row = 0; row < count; row += kRowsAtOnce) {
    const auto part =
        indices.subspan(static_cast<size_t>(row), static_cast<size_t>(std::min(kRowsAtOnce, count - row)));
    const auto rows = static_cast<int64_t>(part.size());
    model_->run(rows, [&](Backend& backend) {
      DeviceMemory memory = backend.allocate(bytes_of(rows * width_));
      backend.gather(table_, part, width_, memory.as<float>());
      finish(backend, memory.as<float>(), rows, out + row * hidden_size(), adapter);
    });
  }
}

}  // namespace gemlet
