// The description of one forward pass: which sequences advance by which tokens, and which results are wanted.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace gemlet {

class Adapter;
class KvTable;
class Model;

// Receives intermediate activations: name, float32 [rows, dim].
using TapSink = std::function<void(const std::string& name, const float* data, int64_t rows, int64_t dim)>;

// The rows of a segment that want logits.
enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

// Ready-made embeddings of consecutive tokens, for example of an image. They take the place of the scaled rows of the
// embedding table, and no scale is applied to them.
struct SoftRows {
  int64_t first;        // among the tokens
  int64_t rows;         // 1 or more
  const float* values;  // [rows, hidden] in host memory
};

// Consecutive tokens of a sequence. A token with a soft row has an id too, which says which per-layer row it takes.
struct TokenRun {
  std::span<const int32_t> ids;
  std::span<const SoftRows> soft_rows = {};  // they are in order and do not overlap
  std::span<const TokenSpan> spans = {};     // they are in order and do not overlap; [0, rows()) are the tokens

  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
  // Throws kInvalidRequest if an id is not in the vocabulary, if soft rows or spans lie outside or overlap, if a value
  // of a soft row is not finite, or if a span is longer than a pass can be.
  void check(const ModelConfig& config) const;
};

// New tokens of one sequence, in order: a chunk of its prompt, or the one token of a decode step. A bidirectional model
// gets all tokens of a text in one segment.
struct Segment {
  KvTable* kv;
  TokenRun tokens;
  LogitsWanted wanted = LogitsWanted::kLast;
  const Adapter* adapter = nullptr;  // an adapter of this model; the same one for all tokens of a sequence
  // If it becomes true, the segment is not wanted any more. Any thread may set it. Its rows stay in the pass, so that
  // the others keep their bits, but its cache does not grow and its part of the logits or embeddings means nothing.
  const std::atomic<bool>* cancel = nullptr;
  // For an assistant: the target's state [target_size] of the previous token, in memory of the host. The segment has
  // one token, which no cache has yet, and `kv` is the target's.
  const float* state = nullptr;

  int64_t rows() const { return tokens.rows(); }
  int64_t logits_rows() const { return wanted == LogitsWanted::kAll ? rows() : wanted == LogitsWanted::kLast ? 1 : 0; }
};

struct Batch {
  std::vector<Segment> segments;
  float* logits = nullptr;      // [sum of logits_rows(), vocab]: the rows of the first segment, then the second's
  float* embeddings = nullptr;  // [segments, embedding_size], instead of logits, of a bidirectional model
  const TapSink* taps = nullptr;
  // The states of the rows that want logits, in memory of the host. Null: they are not wanted. A state is the input of
  // the output head, [rows, hidden]. The states of an assistant are [rows, target_size]: for the next token, they
  // replace the state of the target.
  float* states = nullptr;
  const Model* target = nullptr;  // an assistant's target; nothing else may use it meanwhile, see Model::run()

  int64_t rows() const;
  // Throws kInvalidRequest or kContextLength if the model cannot run this.
  void check(const ModelConfig& config) const;
};

}  // namespace gemlet
