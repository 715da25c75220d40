// A loaded model: configuration, weights, backend. Shared by any number of sequences; one forward pass runs at a time.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/file_mapping.h"
#include "base/fork_mutex.h"
#include "model/adapter.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace gemlet {

// Receives intermediate activations: name, float32 [rows, dim].
using TapSink = std::function<void(const std::string& name, const float* data, int64_t rows, int64_t dim)>;

// Which rows of a segment want logits.
enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

// Consecutive new tokens of one sequence: a chunk of its prompt, or the one token of a decode step; to a bidirectional
// model all tokens of a text.
struct Segment {
  KvCache* kv;
  std::span<const int32_t> ids;
  LogitsWanted wanted = LogitsWanted::kLast;
  float* logits = nullptr;           // [1 or ids.size(), vocab]
  const Adapter* adapter = nullptr;  // of this model; the same one for all tokens of a sequence
  float* embedding = nullptr;        // [embedding_size], instead of logits, of a bidirectional model
};

// What a model's tensors add up to.
struct ModelSize {
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // all matrices and vectors, packed
  int64_t dense_bytes = 0;   // read for every token
  int64_t expert_bytes = 0;  // of all routed experts
};

class Model {
 public:
  Model(ModelConfig config, ModelWeights weights, std::vector<AlignedBuffer> storage,
        std::shared_ptr<const FileMapping> mapping, std::unique_ptr<Backend> backend, Format weight_format,
        KvFormat kv_format, ModelSize size);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const KvLayout& kv_layout() const { return kv_layout_; }
  Format weight_format() const { return weight_format_; }
  // Of the matrices of adapters.
  Format adapter_format() const { return weight_format_ == Format::kF32 ? Format::kF32 : Format::kBf16; }
  Backend& backend() { return *backend_; }

  // Advances every segment by its tokens, appending to its cache and writing the logits or embedding it wants. All or
  // nothing: if it throws, no cache has grown. `cancel` (may be null) is looked at between layers and ends the pass
  // with Error{kCancelled}. Throws kClosed after close().
  void forward(std::span<const Segment> batch, const std::atomic<bool>* cancel = nullptr,
               const TapSink* taps = nullptr);

  int64_t weight_bytes() const { return closed_ ? 0 : size_.weight_bytes; }
  int64_t decode_bytes(int64_t depth) const;  // read for one token after `depth` others: weights and cache
  int64_t parameter_count() const { return size_.parameters; }
  int64_t kv_bytes() const { return *kv_layout_.resident; }  // of the caches of all sequences
  // Of all adapters: those that a sequence alone still holds, and those being built, as well.
  int64_t adapter_bytes() const { return adapter_bytes_; }
  // What adapters of at most this rank add to the scratch of a pass, which stays at the largest that was needed.
  int64_t adapter_scratch_bytes(int64_t max_rank) const;

  void close();
  bool closed() const { return closed_.load(); }

 private:
  friend class ForwardPass;
  friend class Adapter;
  friend class AdapterBuilder;
  ModelConfig config_;
  ModelWeights weights_;
  std::vector<AlignedBuffer> storage_;
  std::shared_ptr<const FileMapping> mapping_;  // weights used where they lie in a file; null: none
  std::unique_ptr<Backend> backend_;
  Format weight_format_;
  ModelSize size_;
  KvLayout kv_layout_;
  AlignedBuffer activations_;  // scratch of the forward pass, grown on demand
  ForkMutex mutex_;            // one forward pass at a time: it owns the scratch and the thread pool
  std::atomic<bool> closed_{false};
  std::atomic<int64_t> adapter_bytes_{0};
};

}  // namespace gemlet
