// A loaded model: configuration, weights, backend. Any number of sequences share it. One forward pass runs at a time.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "base/fork_mutex.h"
#include "model/batch.h"
#include "model/parts.h"

namespace gemlet {

// The sizes of a model's tensors together.
struct ModelSize {
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // all matrices and vectors, packed
  int64_t dense_bytes = 0;   // read for every token
  int64_t expert_bytes = 0;  // size of all routed experts
};

class Model {
 public:
  // `storage` owns the weights that no file holds.
  Model(ModelParts parts, std::vector<DeviceMemory> storage, ModelSize size);

  const ModelConfig& config() const { return parts_.config; }
  const ModelWeights& weights() const { return parts_.weights; }
  // Calls fn(weights) while no pass runs and nobody closes the model; for short reads. Throws kClosed, and kModelFile
  // if a file that the weights are in was changed.
  template <typename Read>
  void read_weights(const Read& read) {
    const std::lock_guard<ForkMutex> lock(mutex_);
    if (closed_) fail(ErrorCode::kClosed, "the model is closed; load it again");
    check_files();
    read(parts_.weights);
  }
  // The towers for images and sound. Only run() may use the memory that these point to.
  const Tensors& towers() const { return parts_.towers; }
  // Calls fn(backend) for work on `rows` rows while no pass runs and nobody closes the model. Long work should be
  // several calls, so that texts go on in between. Throws what read_weights() throws.
  template <typename Work>
  void run(int64_t rows, const Work& work) {
    const std::lock_guard<ForkMutex> lock(mutex_);
    if (closed_) fail(ErrorCode::kClosed, "the model is closed; load it again");
    if (mutex_.torn()) leave_torn_behind();
    check_files();
    parts_.backend->begin_pass(rows);
    work(*parts_.backend);
  }
  KvPool& kv() { return *parts_.kv; }
  const KvPool& kv() const { return *parts_.kv; }
  Format weight_format() const { return parts_.weight_format; }
  // The factors by which the columns of a matrix were multiplied; null if all are 1. `matrix` is the name in
  // ModelBuilder. The factors outlive close().
  const Balance* balance(const std::string& matrix) const {
    const auto found = parts_.balances.find(matrix);
    return found == parts_.balances.end() ? nullptr : found->second.get();
  }
  // The factors by which the keys of a layer were divided before they were stored in the cache; null if all are 1.
  const std::vector<float>* key_factors(int64_t layer) const {
    const auto found = parts_.key_factors.find(static_cast<size_t>(layer));
    return found == parts_.key_factors.end() ? nullptr : &found->second;
  }
  Backend& backend() { return *parts_.backend; }
  // For a drafter, whose passes run inside run() of this model.
  const std::shared_ptr<Backend>& shared_backend() const { return parts_.backend; }

  // Advances every segment by its tokens: appends to its cache and writes the logits or embeddings that the batch
  // wants. If it throws, no cache has grown. Returns for each segment whether it was cancelled: it looks at their
  // flags between layers, and stops when all of them are cancelled. Throws kInvalidRequest for a wrong segment, before
  // anything runs; kClosed after close(), also in the middle of a pass; kModelFile if a file that it reads was changed,
  // also during the pass.
  [[nodiscard]] std::vector<bool> forward(const Batch& batch);

  bool busy() const { return mutex_.held(); }  // whether a pass runs at this moment

  int64_t weight_bytes() const { return closed() ? 0 : size_.weight_bytes; }
  int64_t decode_bytes(int64_t depth) const;  // bytes of weights and cache that a token after `depth` others reads
  // Bytes of matrices, keys and values that all passes so far have read. Any thread may call it.
  int64_t bytes_read() const { return parts_.backend->bytes_read(); }
  int64_t parameter_count() const { return size_.parameters; }
  // Size of all adapters, including those being built and those that only a sequence still holds.
  int64_t adapter_bytes() const { return *adapter_total_; }
  const std::shared_ptr<std::atomic<int64_t>>& adapter_total() const { return adapter_total_; }
  // The bytes that adapters of at most this rank add to the scratch of a pass. The scratch stays at the largest size
  // that was needed.
  int64_t adapter_scratch_bytes(int64_t max_rank) const;

  // Ends the running pass at its next layer, then gives the memory back.
  void close();
  bool closed() const { return closed_.load(); }

  ~Model();

 private:
  void check_files() const;
  // Is called after a fork. A thread of the parent may have been changing these parts, and this process lacks that
  // thread.
  void leave_torn_behind();

  ModelParts parts_;
  std::vector<DeviceMemory> storage_;
  ModelSize size_;
  ForkMutex mutex_;  // held by a forward pass, which uses the scratch and the thread pool
  std::atomic<bool> closed_{false};
  std::shared_ptr<std::atomic<int64_t>> adapter_total_ = std::make_shared<std::atomic<int64_t>>(0);
};

}  // namespace gemlet
