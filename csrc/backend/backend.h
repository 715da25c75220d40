// What a device must be able to do: a dozen coarse operations over [rows, dim] activations in float32. The model is written
// against this interface and sees no thread and no instruction set. Pointers are the backend's own memory (allocate());
// the CPU's are ordinary pointers. All calls on one backend come from one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/aligned_buffer.h"
#include "formats/formats.h"

namespace gemlet {

// How keys and values are stored.
enum class KvFormat : uint8_t { kF32, kBf16 };

// One product of a matmul call: y [rows, weight->rows] = x [rows, cols] * weight^T.
struct MatmulTarget {
  const Matrix* weight;
  float* y;
};

// Blocks of one sequence in one layer. Rows of a segment are consecutive tokens of one sequence.
struct KvView {
  const uint8_t* const* blocks;  // blocks[i] holds tokens [64 (first_block + i), + 64)
  int64_t first_block;
  int64_t layer_offset;          // bytes from a block's start to this layer's first head
};
struct AttentionSegment {
  KvView kv;
  int64_t row;        // first row of the batch
  int64_t rows;
  int64_t position;   // absolute position of that row
};

struct AttentionShape {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t window;      // 0 = full attention
  float softcap;       // 0 = none
  float query_scale;
  KvFormat kv_format;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string tier() const = 0;
  virtual int threads() const = 0;
  virtual AlignedBuffer allocate(size_t bytes) = 0;

  // out [ids, dim] = scale * table[ids]
  virtual void embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) = 0;

  // out [rows, dim] = rms_norm(x) * weight
  virtual void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) = 0;

  // residual [rows, dim] += weight ? rms_norm(x) * weight : x
  virtual void add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim,
                          float* residual) = 0;

  // All targets share x [rows, cols].
  virtual void matmul(const float* x, int64_t rows, std::span<const MatmulTarget> targets) = 0;

  // gate [rows, dim] = gelu_tanh(gate) * up
  virtual void gelu_mul(float* gate, const float* up, int64_t rows, int64_t dim) = 0;

  // In place on q [rows, heads, head_dim] and k [rows, kv_heads, head_dim]: head norms (null weight = none), rotation by
  // cosines/sines [rows, head_dim / 2], query_scale on q. Then k and v go into the cache at their rows' positions.
  virtual void rope_and_store(const AttentionShape& shape, std::span<const AttentionSegment> segments, float* q, float* k,
                              const float* v, const float* q_norm, const float* k_norm, float eps,
                              const float* cosines, const float* sines) = 0;

  // out [rows, heads, head_dim] = attention of q over the cache
  virtual void attention(const AttentionShape& shape, std::span<const AttentionSegment> segments, const float* q,
                         float* out) = 0;

  // x = cap * tanh(x / cap)
  virtual void softcap(float cap, int64_t rows, int64_t dim, float* x) = 0;

  // Runs fn(task) for tasks [0, tasks) on the backend's host threads; for packing weights while loading.
  virtual void parallel(int64_t tasks, void (*fn)(const void* context, int64_t task), const void* context) = 0;
};

// threads >= 1; the tier is the machine's highest, or what GEMLET_CPU forces.
std::unique_ptr<Backend> make_cpu_backend(int threads);

// Throws kUnsupported in a build without CUDA.
std::unique_ptr<Backend> make_cuda_backend();

}  // namespace gemlet
