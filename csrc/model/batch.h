// Describes one forward pass: the sequences, the new tokens of each, and the wanted results.
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

// The rows of a segment whose logits are wanted.
enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

// Embeddings of consecutive tokens that a tower computed, for example for an image. They replace the scaled rows of the
// embedding table. No scale is applied to them.
struct SoftRows {
  int64_t first;        // index of the first token
  int64_t rows;         // 1 or more
  const float* values;  // [rows, hidden] in host memory
};

// Consecutive tokens of a sequence. A token with a soft row also has an id, which selects its per-layer row.
struct TokenRun {
  std::span<const int32_t> ids;
  std::span<const SoftRows> soft_rows = {};  // in order, without overlap
  std::span<const TokenSpan> spans = {};     // in order, without overlap; position 0 is the first of `ids`

  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
  // Throws kInvalidRequest if an id is not in the vocabulary, if soft rows or spans lie outside the tokens or overlap,
  // if a value of a soft row is not finite, or if a span is longer than the longest pass.
  void check(const ModelConfig& config) const;
};

// New tokens of one sequence, in order: a chunk of its prompt, or the one token of a decode step. For a bidirectional
// model, one segment has all tokens of a text.
struct Segment {
  KvTable* kv;
  TokenRun tokens;
  LogitsWanted wanted = LogitsWanted::kLast;
  const Adapter* adapter = nullptr;  // an adapter of this model; the same one for all tokens of a sequence
  // True cancels the segment. Any thread may set it. The segment's rows stay in the pass, so that the results of the
  // other segments keep their bits. Its cache does not grow, and its part of the logits or embeddings has no meaning.
  const std::atomic<bool>* cancel = nullptr;
  // For an assistant: the target's state [target_size] of the previous token, in memory of the host. The segment has
  // one token, which no cache has yet, and `kv` is the target's.
  const float* state = nullptr;

  int64_t rows() const { return tokens.rows(); }
  int64_t logits_rows() const { return wanted == LogitsWanted::kAll ? rows() : wanted == LogitsWanted::kLast ? 1 : 0; }
};

struct Batch {
  std::vector<Segment> segments;
  // [sum of logits_rows(), vocab]: first the rows of the first segment, then those of the second, and so on
  float* logits = nullptr;
  float* embeddings = nullptr;  // [segments, embedding_size]; only for a bidirectional model, which has no logits
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
