// LoRA adapters (Hu et al. 2021, arXiv 2106.09685): low-rank corrections of a layer's matrices, kept beside the weights
// in whatever format these are: y = W x + scale * B (A x). Any number of adapters can be in memory. Each sequence has
// one or none.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "backend/device_memory.h"
#include "formats/formats.h"

namespace gemlet {

class Model;

// What an adapter adds to one matrix [rows, cols].
struct LowRank {
  Matrix a;  // [rank, cols]
  Matrix b;  // [rows, rank]
  float scale = 0;
  bool empty() const { return a.empty(); }
};

// A term is empty where the adapter leaves a matrix as it is.
struct LayerAdapter {
  LowRank q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

// The format of an adapter's matrices, by that of the model's weights.
inline Format adapter_format(Format weights) { return weights == Format::kF32 ? Format::kF32 : Format::kBf16; }

// An adapter of one model, made by AdapterBuilder. The sequences that use it share it, and it is freed with the last of
// them. `total` counts the bytes of all adapters of the model.
class Adapter {
 public:
  Adapter(std::shared_ptr<const Model> model, size_t layers, std::shared_ptr<std::atomic<int64_t>> total)
      : model_(std::move(model)), layers_(layers), total_(std::move(total)) {}
  ~Adapter() { *total_ -= bytes_; }
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  bool belongs_to(const Model& model) const { return model_.get() == &model; }
  const LayerAdapter& layer(size_t index) const { return layers_[index]; }
  int64_t max_rank() const { return max_rank_; }
  int64_t bytes() const { return bytes_; }

 private:
  friend class AdapterBuilder;
  std::shared_ptr<const Model> model_;
  std::vector<LayerAdapter> layers_;
  std::vector<DeviceMemory> storage_;
  std::shared_ptr<std::atomic<int64_t>> total_;
  int64_t bytes_ = 0;
  int64_t max_rank_ = 0;
};

}  // namespace gemlet
