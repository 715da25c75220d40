// The backend on a GPU. Every operation is one or a few launches in one stream. Only downloads, uploads and the choice
// of experts wait for the stream.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/parameters.h"
#include "base/thread_pool.h"

namespace gemlet::cuda {

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(const BackendOptions& options);

  std::string tier() const override { return "cuda"; }
  int threads() const override { return pool_.threads(); }
  int decode_threads() const override { return pool_.threads(); }
  void begin_pass(int64_t rows) override;
  DeviceMemory allocate(size_t bytes) override;
  void upload(const void* host, size_t bytes, void* memory) override;
  void download(const void* memory, size_t bytes, void* host) override;
  bool host_memory() const override { return false; }
  int64_t free_memory() override { return gpu().device->memory().free; }
  void leave_scratch_behind() override {}  // a forked process cannot use the GPU at all
  int64_t bytes_read() const override { return bytes_read_.load(std::memory_order_relaxed); }

  bool multiplies(const Matrix& weight) const override { return weight.format != Format::kW4a16; }
  bool attends(KvFormat format) const override { return format != KvFormat::kInt4; }
  int64_t prepared_bytes(const Matrix& weight, int64_t rows) const override {
    return weight.rounding.input > 0 ? rows * weight.cols * 4 : 0;
  }
  int64_t expansion_bytes(const Matrix&) const override { return 0; }
  int64_t kv_head_bytes(int64_t head_dim, KvFormat format) const override;
  int64_t attention_bytes(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t tokens) const override;

  void embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) override;
  void add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* residual) override;
  void matmul(std::span<const Product> products) override;
  void gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows, int64_t dim,
                float* out) override;
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
  void scale_by(const float* factor, int64_t count, float* x) override;
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
  // Launches `kernel` with `args`. Kernels that work on numbers or on rows have blocks of 256 threads.
  void launch(Kernel kernel, const Grid& grid, int threads, int64_t shared_bytes, const void* args);
  void for_each_number(Kernel kernel, int64_t count, int64_t rows, const void* args);
  void for_each_row(Kernel kernel, int64_t rows, const void* args);
  void multiply(const Product& product, const float* x, const float* gate);
  const float* round_input(const Product& product);
  uint8_t* scratch(DeviceMemory& memory, size_t bytes);

  struct Gpu {
    std::shared_ptr<Device> device = std::make_shared<Device>();
    Parameters parameters{*device};
  };
  Gpu& gpu();  // opens the GPU at the first call: a backend that only plans memory needs no GPU

  std::once_flag opened_;
  std::unique_ptr<Gpu> gpu_;
  bool exact_batches_;
  ThreadPool pool_;  // it packs weights
  DeviceMemory partials_, routed_, frame_sums_, rounded_;
  std::atomic<int64_t> bytes_read_ = 0;
};

}  // namespace gemlet::cuda
