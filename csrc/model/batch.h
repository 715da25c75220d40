// One forward pass as its caller describes it: which sequences advance by which tokens, and what is wanted of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace gemlet {

class Adapter;
class KvTable;

// Rows that one pass over a sequence has at most. Longer prompts come in chunks of this.
inline constexpr int64_t kChunkTokens = 512;

// Texts in one pass of a bidirectional model: at most so many, and together kChunkTokens, unless it is a single longer
// one.
inline constexpr int64_t kPassTexts = 32;

// Receives intermediate activations: name, float32 [rows, dim].
using TapSink = std::function<void(const std::string& name, const float* data, int64_t rows, int64_t dim)>;

// Which rows of a segment want logits.
enum class LogitsWanted : uint8_t { kNone, kLast, kAll };

// New tokens of one sequence, in order: a chunk of its prompt, or the one token of a decode step. A bidirectional model
// gets all tokens of a text in one segment.
struct Segment {
  KvTable* kv;
  std::span<const int32_t> ids;
  LogitsWanted wanted = LogitsWanted::kLast;
  const Adapter* adapter = nullptr;  // of this model; the same one for all tokens of a sequence

  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
  int64_t logits_rows() const { return wanted == LogitsWanted::kAll ? rows() : wanted == LogitsWanted::kLast ? 1 : 0; }
};

struct Batch {
  std::vector<Segment> segments;
  float* logits = nullptr;      // [sum of logits_rows(), vocab]: the rows of the first segment, then the second's
  float* embeddings = nullptr;  // [segments, embedding_size], instead of logits, of a bidirectional model
  const std::atomic<bool>* cancel = nullptr;
  const TapSink* taps = nullptr;

  int64_t rows() const {
    int64_t rows = 0;
    for (const Segment& segment : segments) rows += segment.rows();
    return rows;
  }
};

}  // namespace gemlet
