// The CPU backend: splits each operation into tasks for the thread pool and hands them to the kernels of one tier.
// Kernels sum in a fixed order, and where results depend on how work is split, the split does not depend on the number
// of threads: results are equal for every thread count.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "kernels/registry.h"

namespace gemlet {

// Activations of one product in the form that its kernel takes.
struct MatmulInput {
  const kernels::MatmulOperation* operation;
  int64_t cols;
  int64_t stride;          // bytes from row to row
  int64_t prepared_bytes;  // size of all rows in another form than float32; 0: the kernel takes float32
  int64_t rounded_bytes;   // size of all rows rounded by a fixed scale, in float32; 0: they are not rounded, or during
                           // preparation
  const uint8_t* data;
  bool shared;  // whether the product before uses the same memory
};

// One run of panels of one product for one block of rows.
struct MatmulTask {
  kernels::MatmulArgs args;
  kernels::matmul_fn* kernel;
  bool expand;   // weights in bf12 to bf16 first
  float output;  // the scale of StaticRounding
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(Tier tier, const BackendOptions& options);

  std::string tier() const override { return std::string(tier_name(tier_)); }
  int threads() const override { return threads_; }
  int decode_threads() const override { return decode_threads_; }
  void begin_pass(int64_t rows) override;
  DeviceMemory allocate(size_t bytes) override;
  void upload(const void* host, size_t bytes, void* memory) override;
  void download(const void* memory, size_t bytes, void* host) override;
  bool host_memory() const override { return true; }
  int64_t free_memory() override { return 0; }
  void leave_scratch_behind() override;
  bool multiplies(const Matrix&) const override { return true; }
  bool attends(KvFormat) const override { return true; }
  int64_t bytes_read() const override { return bytes_read_.load(std::memory_order_relaxed); }
  int64_t prepared_bytes(const Matrix& weight, int64_t rows) const override;
  int64_t expansion_bytes(const Matrix& weight) const override;
  int64_t kv_head_bytes(int64_t head_dim, KvFormat format) const override {
    return kernels::kv_head_bytes(head_dim, bits_of(format));
  }
  int64_t attention_bytes(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t tokens) const override;
  void embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) override;
  void add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* residual) override;
  void matmul(std::span<const Product> products) override;
  void gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows, int64_t dim,
                float* out) override;
  bool has_exact_gelu() const override { return true; }
  void exact_gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows,
                      int64_t dim, float* out) override;
  void gaussian_topk(float deviations, int64_t rows, int64_t dim, float* x) override;
  void matmul_where(const Product& product, const float* gate) override;
  void rope_angles(std::span<const float> frequencies, std::span<const int64_t> positions, float* cosines,
                   float* sines) override;
  void rope_and_store(const AttentionShape& shape, std::span<const StoreSegment> segments, float* q, float* k, float* v,
                      const float* q_norm, const float* k_norm, bool v_norm, float eps, const float* cosines,
                      const float* sines) override;
  void attention(const AttentionShape& shape, std::span<const AttentionSegment> segments, const float* q,
                 float* out) override;
  void softcap(float cap, int64_t rows, int64_t dim, float* x) override;
  void copy(const float* x, int64_t count, float* out) override;
  void copy_bytes(const uint8_t* from, int64_t bytes, uint8_t* to) override;
  void scale(float factor, int64_t count, float* x) override;
  void scale_by(const float* factor, int64_t count, float* x) override { scale(*factor, count, x); }
  void mul_rows(const float* x, const float* weight, int64_t rows, int64_t dim, float* out) override;
  void gather(const float* x, std::span<const int32_t> rows, int64_t dim, float* out) override;
  void combine(const float* x, std::span<const int32_t> places, std::span<const float> weights, int64_t per_row,
               int64_t dim, float* out) override;
  void add_table_rows(const RowTable& table, std::span<const int32_t> ids, float table_scale, float out_scale,
                      float* x) override;
  void route(const float* logits, const float* scale, int64_t rows, int64_t experts, int64_t count, int32_t* ids,
             float* weights) override;
  void altup_predict(const float* x, const float* modalities, float input_scale, std::span<const float* const> coefs,
                     int64_t streams, int64_t dim, float* out) override;
  void altup_correct(const float* predicted, const float* activated, const float* modalities, float input_scale,
                     std::span<const float* const> coefs, int64_t streams, int64_t dim, float* out) override;
  void match_magnitude(const float* target, int64_t rows, int64_t dim, float* x) override;
  void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t dim,
                  float* out) override;
  void add_bias(const float* bias, int64_t rows, int64_t dim, float* x) override;
  void bias_gelu(const float* bias, int64_t rows, int64_t dim, float* x) override;
  void mean_pool(const float* x, int64_t rows, int64_t cols, int64_t dim, int64_t k, float* out) override;
  void clamp(const float* x, float low, float high, int64_t count, float* out) override;
  void add_scaled(const float* x, float factor, int64_t count, float* y) override;
  void silu(int64_t count, float* x) override;
  void sigmoid_mul(const float* x, int64_t rows, int64_t dim, float* out) override;
  void unfold(const Convolution& convolution, const float* x, int64_t first_row, int64_t rows, float* out) override;
  void depthwise(const Convolution& convolution, const float* x, const float* weight, int64_t first_row, int64_t rows,
                 float* out) override;
  void norm_relu(const float* weight, float eps, int64_t cells, int64_t channels, float* x) override;
  void cumulative_norm_relu(const float* weight, float eps, int64_t frames, int64_t cells, int64_t channels,
                            float* x) override;
  void causal_convolution(const float* x, const float* weight, int64_t taps, int64_t rows, int64_t dim,
                          float* out) override;
  void local_attention(const LocalAttention& shape, const float* q, const float* k, const float* v,
                       const float* relative, int64_t rows, float* out) override;
  void parallel(int64_t tasks, void (*fn)(const void* context, int64_t task), const void* context) override;

 private:
  // A row operation on fewer floats than this costs less than waking the pool.
  static constexpr int64_t kSerialFloats = 16 * 1024;

  // Calls fn(row) for every row of dim floats. The calling thread does small work alone, because a barrier would cost
  // more.
  template <typename Fn>
  void for_each_row(int64_t rows, int64_t dim, const Fn& fn) {
    if (rows * dim <= kSerialFloats) {
      for (int64_t row = 0; row < rows; ++row) fn(row);
      return;
    }
    const int64_t rows_per_task = std::max<int64_t>(1, kSerialFloats / 4 / dim);
    pool_.run((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
      const int64_t end = std::min(rows, (task + 1) * rows_per_task);
      for (int64_t row = task * rows_per_task; row < end; ++row) fn(row);
    });
  }
  // Calls fn(first, floats) for pieces of `count` floats that form no rows.
  template <typename Fn>
  void for_each_piece(int64_t count, const Fn& fn) {
    constexpr int64_t kPiece = 4096;
    for_each_row((count + kPiece - 1) / kPiece, kPiece,
                 [&](int64_t piece) { fn(piece * kPiece, std::min(kPiece, count - piece * kPiece)); });
  }
  float* scratch(AlignedBuffer& buffer, int64_t floats);           // grows the buffer
  MatmulInput input_of(const Matrix& weight, int64_t rows) const;  // the data of the result is not set
  void prepare_inputs(std::span<const Product> products);

  Tier tier_;
  ThreadPool pool_;
  int threads_, decode_threads_;
  kernels::KernelTable kernels_;
  std::atomic<int64_t> bytes_read_{0};
  AlignedBuffer prepared_;           // activations as int8 or bf16
  std::vector<MatmulInput> inputs_;  // inputs of the current call of matmul()
  std::vector<MatmulTask> tasks_;
  AlignedBuffer expanded_;                 // per thread, weights in bf12 as bf16
  AlignedBuffer attention_scratch_;        // per thread
  AlignedBuffer partials_;                 // attention split over the cache
  std::vector<const uint8_t*> kv_blocks_;  // blocks of the current call of attention()
};

}  // namespace gemlet
