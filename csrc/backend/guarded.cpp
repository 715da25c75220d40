#include "backend/guarded.h"

#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>

#include "base/error.h"

namespace gemlet {
namespace {

// The allocations of a backend. Each has a guarded address, a usable address and a size in bytes.
class Allocations {
 public:
  void add(uintptr_t closed, uint8_t* usable, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    allocations_[closed] = {usable, bytes};
  }
  void remove(uintptr_t closed) {
    const std::lock_guard<std::mutex> lock(mutex_);
    allocations_.erase(closed);
  }
  // The usable address of `bytes` bytes.
  uint8_t* translate(uintptr_t closed, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto next = allocations_.upper_bound(closed);
    if (next != allocations_.begin()) {
      const auto& [begin, allocation] = *std::prev(next);
      const size_t offset = closed - begin;
      if (offset <= allocation.bytes && bytes <= allocation.bytes - offset) return allocation.usable + offset;
    }
    fail(ErrorCode::kInternal, "an operation was given ", static_cast<int64_t>(bytes),
         " bytes that are not memory of the backend");
  }

 private:
  struct Allocation {
    uint8_t* usable;
    size_t bytes;
  };
  std::mutex mutex_;
  std::map<uintptr_t, Allocation> allocations_;
};

// Keeps one allocation.
class GuardedPages : public DeviceMemory::Keeper {
 public:
  GuardedPages(std::shared_ptr<Allocations> allocations, DeviceMemory memory)
      : allocations_(std::move(allocations)), memory_(std::move(memory)) {
    closed_ = mmap(nullptr, memory_.size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (closed_ == MAP_FAILED) fail(ErrorCode::kMemory, "there are no addresses left");
    allocations_->add(reinterpret_cast<uintptr_t>(closed_), memory_.data(), memory_.size());
  }
  ~GuardedPages() override {
    if (closed_ == MAP_FAILED) return;
    allocations_->remove(reinterpret_cast<uintptr_t>(closed_));
    munmap(closed_, memory_.size());
  }
  uint8_t* data() { return static_cast<uint8_t*>(closed_); }

 private:
  std::shared_ptr<Allocations> allocations_;
  DeviceMemory memory_;
  void* closed_;
};

class GuardedBackend : public Backend {
 public:
  explicit GuardedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string tier() const override { return inner_->tier(); }
  int threads() const override { return inner_->threads(); }
  int decode_threads() const override { return inner_->decode_threads(); }
  void begin_pass(int64_t rows) override { inner_->begin_pass(rows); }
  void leave_scratch_behind() override { inner_->leave_scratch_behind(); }
  int64_t bytes_read() const override { return inner_->bytes_read(); }
  bool multiplies(const Matrix& weight) const override { return inner_->multiplies(weight); }
  bool attends(KvFormat format) const override { return inner_->attends(format); }
  int64_t prepared_bytes(const Matrix& weight, int64_t rows) const override {
    return inner_->prepared_bytes(weight, rows);
  }
  int64_t expansion_bytes(const Matrix& weight) const override { return inner_->expansion_bytes(weight); }
  int64_t kv_head_bytes(int64_t head_dim, KvFormat format) const override {
    return inner_->kv_head_bytes(head_dim, format);
  }
  int64_t attention_bytes(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t tokens) const override {
    return inner_->attention_bytes(num_heads, num_kv_heads, head_dim, tokens);
  }
  void parallel(int64_t tasks, void (*fn)(const void* context, int64_t task), const void* context) override {
    inner_->parallel(tasks, fn, context);
  }

  bool host_memory() const override { return false; }
  int64_t free_memory() override { return inner_->free_memory(); }
  DeviceMemory allocate(size_t bytes) override {
    if (bytes == 0) return {};
    auto pages = std::make_unique<GuardedPages>(allocations_, inner_->allocate(bytes));
    uint8_t* const data = pages->data();
    return {data, bytes, std::move(pages)};
  }
  void upload(const void* host, size_t bytes, void* memory) override {
    inner_->upload(host, bytes, at(static_cast<uint8_t*>(memory), size_of(bytes)));
  }
  void download(const void* memory, size_t bytes, void* host) override {
    inner_->download(at(static_cast<const uint8_t*>(memory), size_of(bytes)), bytes, host);
  }

  void embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) override {
    inner_->embed(at(table), ids, scale, at(out, size_of(ids.size()) * table.cols));
  }
  void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) override {
    inner_->rms_norm(at(x, rows * dim), at(weight, dim), eps, rows, dim, at(out, rows * dim));
  }
  void add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* residual) override {
    inner_->add_branch(at(x, rows * dim), at(weight, dim), eps, rows, dim, at(residual, rows * dim));
  }
  void matmul(std::span<const Product> products) override {
    std::vector<Matrix> weights;
    std::vector<Product> translated;
    weights.reserve(products.size());
    for (const Product& product : products) {
      weights.push_back(at(*product.weight));
      translated.push_back(at(product, weights.back()));
    }
    inner_->matmul(translated);
  }
  void gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows, int64_t dim,
                float* out) override {
    inner_->gelu_mul(at(gate, (rows - 1) * gate_stride + dim), gate_stride, at(up, (rows - 1) * up_stride + dim),
                     up_stride, rows, dim, at(out, rows * dim));
  }
  bool has_exact_gelu() const override { return inner_->has_exact_gelu(); }
  void exact_gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows,
                      int64_t dim, float* out) override {
    inner_->exact_gelu_mul(at(gate, (rows - 1) * gate_stride + dim), gate_stride, at(up, (rows - 1) * up_stride + dim),
                           up_stride, rows, dim, at(out, rows * dim));
  }
  void gaussian_topk(float deviations, int64_t rows, int64_t dim, float* x) override {
    inner_->gaussian_topk(deviations, rows, dim, at(x, rows * dim));
  }
  void matmul_where(const Product& product, const float* gate) override {
    const Matrix weight = at(*product.weight);
    inner_->matmul_where(at(product, weight), at(gate, weight.rows));
  }
  void rope_angles(std::span<const float> frequencies, std::span<const int64_t> positions, float* cosines,
                   float* sines) override {
    const int64_t count = size_of(positions.size() * frequencies.size());
    inner_->rope_angles(frequencies, positions, at(cosines, count), at(sines, count));
  }
  void rope_and_store(const AttentionShape& shape, std::span<const StoreSegment> segments, float* q, float* k, float* v,
                      const float* q_norm, const float* k_norm, bool v_norm, float eps, const float* cosines,
                      const float* sines) override {
    const Translated<StoreSegment, uint8_t> translated(*this, shape, segments);
    const int64_t rows = translated.rows, dim = shape.head_dim, keys = rows * shape.num_kv_heads * dim;
    inner_->rope_and_store(shape, translated.segments, at(q, rows * shape.num_heads * dim), at(k, keys),
                           k ? at(v, keys) : nullptr, at(q_norm, dim), at(k_norm, dim), v_norm, eps,
                           at(cosines, rows * (dim / 2)), at(sines, rows * (dim / 2)));
  }
  void attention(const AttentionShape& shape, std::span<const AttentionSegment> segments, const float* q,
                 float* out) override {
    const Translated<AttentionSegment, const uint8_t> translated(*this, shape, segments);
    const int64_t floats = translated.rows * shape.num_heads * shape.head_dim;
    inner_->attention(shape, translated.segments, at(q, floats), at(out, floats));
  }
  void softcap(float cap, int64_t rows, int64_t dim, float* x) override {
    inner_->softcap(cap, rows, dim, at(x, rows * dim));
  }
  void copy(const float* x, int64_t count, float* out) override { inner_->copy(at(x, count), count, at(out, count)); }
  void copy_bytes(const uint8_t* from, int64_t bytes, uint8_t* to) override {
    inner_->copy_bytes(at(from, bytes), bytes, at(to, bytes));
  }
  void scale(float factor, int64_t count, float* x) override { inner_->scale(factor, count, at(x, count)); }
  void scale_by(const float* factor, int64_t count, float* x) override {
    inner_->scale_by(at(factor, 1), count, at(x, count));
  }
  void mul_rows(const float* x, const float* weight, int64_t rows, int64_t dim, float* out) override {
    inner_->mul_rows(at(x, rows * dim), at(weight, dim), rows, dim, at(out, rows * dim));
  }
  void gather(const float* x, std::span<const int32_t> rows, int64_t dim, float* out) override {
    inner_->gather(at(x, end_of(rows) * dim), rows, dim, at(out, size_of(rows.size()) * dim));
  }
  void combine(const float* x, std::span<const int32_t> places, std::span<const float> weights, int64_t per_row,
               int64_t dim, float* out) override {
    inner_->combine(at(x, end_of(places) * dim), places, weights, per_row, dim,
                    at(out, size_of(places.size()) / per_row * dim));
  }
  void add_table_rows(const RowTable& table, std::span<const int32_t> ids, float table_scale, float out_scale,
                      float* x) override {
    inner_->add_table_rows(table, ids, table_scale, out_scale, at(x, size_of(ids.size()) * table.cols()));
  }
  void route(const float* logits, const float* scale, int64_t rows, int64_t experts, int64_t count, int32_t* ids,
             float* weights) override {
    inner_->route(at(logits, rows * experts), at(scale, experts), rows, experts, count, ids, weights);
  }
  void altup_predict(const float* x, const float* modalities, float input_scale, std::span<const float* const> coefs,
                     int64_t streams, int64_t dim, float* out) override {
    const int64_t rows = size_of(coefs.size()), floats = streams * rows * dim;
    inner_->altup_predict(at(x, floats), at(modalities, rows * streams), input_scale,
                          each(coefs, streams * streams * streams), streams, dim, at(out, floats));
  }
  void altup_correct(const float* predicted, const float* activated, const float* modalities, float input_scale,
                     std::span<const float* const> coefs, int64_t streams, int64_t dim, float* out) override {
    const int64_t rows = size_of(coefs.size()), floats = streams * rows * dim;
    inner_->altup_correct(at(predicted, floats), at(activated, rows * dim), at(modalities, rows * streams), input_scale,
                          each(coefs, streams * streams), streams, dim, at(out, floats));
  }
  void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t dim,
                  float* out) override {
    inner_->layer_norm(at(x, rows * dim), at(weight, dim), at(bias, dim), eps, rows, dim, at(out, rows * dim));
  }
  void add_bias(const float* bias, int64_t rows, int64_t dim, float* x) override {
    inner_->add_bias(at(bias, dim), rows, dim, at(x, rows * dim));
  }
  void bias_gelu(const float* bias, int64_t rows, int64_t dim, float* x) override {
    inner_->bias_gelu(at(bias, dim), rows, dim, at(x, rows * dim));
  }
  void mean_pool(const float* x, int64_t rows, int64_t cols, int64_t dim, int64_t k, float* out) override {
    inner_->mean_pool(at(x, rows * cols * dim), rows, cols, dim, k, at(out, (rows / k) * (cols / k) * dim));
  }
  void match_magnitude(const float* target, int64_t rows, int64_t dim, float* x) override {
    inner_->match_magnitude(at(target, rows * dim), rows, dim, at(x, rows * dim));
  }
  void clamp(const float* x, float low, float high, int64_t count, float* out) override {
    inner_->clamp(at(x, count), low, high, count, at(out, count));
  }
  void add_scaled(const float* x, float factor, int64_t count, float* y) override {
    inner_->add_scaled(at(x, count), factor, count, at(y, count));
  }
  void silu(int64_t count, float* x) override { inner_->silu(count, at(x, count)); }
  void sigmoid_mul(const float* x, int64_t rows, int64_t dim, float* out) override {
    inner_->sigmoid_mul(at(x, rows * 2 * dim), rows, dim, at(out, rows * dim));
  }
  void unfold(const Convolution& c, const float* x, int64_t first_row, int64_t rows, float* out) override {
    inner_->unfold(c, at(x, c.rows * c.cols * c.channels), first_row, rows,
                   at(out, rows * c.out_cols() * c.channels * c.kernel * c.kernel));
  }
  void depthwise(const Convolution& c, const float* x, const float* weight, int64_t first_row, int64_t rows,
                 float* out) override {
    inner_->depthwise(c, at(x, c.rows * c.cols * c.channels), at(weight, c.kernel * c.kernel * c.channels), first_row,
                      rows, at(out, rows * c.out_cols() * c.channels));
  }
  void norm_relu(const float* weight, float eps, int64_t cells, int64_t channels, float* x) override {
    inner_->norm_relu(at(weight, channels), eps, cells, channels, at(x, cells * channels));
  }
  void cumulative_norm_relu(const float* weight, float eps, int64_t frames, int64_t cells, int64_t channels,
                            float* x) override {
    inner_->cumulative_norm_relu(at(weight, channels), eps, frames, cells, channels, at(x, frames * cells * channels));
  }
  void causal_convolution(const float* x, const float* weight, int64_t taps, int64_t rows, int64_t dim,
                          float* out) override {
    inner_->causal_convolution(at(x, rows * dim), at(weight, taps * dim), taps, rows, dim, at(out, rows * dim));
  }
  void local_attention(const LocalAttention& shape, const float* q, const float* k, const float* v,
                       const float* relative, int64_t rows, float* out) override {
    const int64_t dim = shape.num_heads * shape.head_dim;
    inner_->local_attention(shape, at(q, rows * dim), at(k, rows * dim), at(v, rows * dim),
                            at(relative, shape.keys * dim), rows, at(out, rows * dim));
  }

 private:
  static int64_t size_of(size_t count) { return static_cast<int64_t>(count); }
  static int64_t end_of(std::span<const int32_t> rows) {  // one more than the largest row
    int64_t end = 0;
    for (const int32_t row : rows) end = std::max<int64_t>(end, row + 1);
    return end;
  }

  // The address of `count` values in the inner backend's memory. Null stays null.
  template <typename Value>
  Value* at(Value* values, int64_t count) {
    if (!values || count <= 0) return values;
    const size_t bytes = static_cast<size_t>(count) * sizeof(Value);
    return reinterpret_cast<Value*>(allocations_->translate(reinterpret_cast<uintptr_t>(values), bytes));
  }
  std::vector<const float*> each(std::span<const float* const> addresses, int64_t count) {
    std::vector<const float*> translated;
    for (const float* const address : addresses) translated.push_back(at(address, count));
    return translated;
  }
  Matrix at(Matrix matrix) {
    matrix.data = at(matrix.data, matrix.bytes());
    return matrix;
  }
  Product at(Product product, const Matrix& weight) {
    const int64_t stride = product.y_stride > 0 ? product.y_stride : weight.rows;
    product.x = at(product.x, product.rows * weight.cols);
    product.y = at(product.y, (product.rows - 1) * stride + weight.rows);
    product.weight = &weight;
    return product;
  }

  // Segments with the blocks where they are in the inner backend's memory.
  template <typename Given, typename Byte>
  struct Translated {
    Translated(GuardedBackend& backend, const AttentionShape& shape, std::span<const Given> given) {
      const int64_t head_bytes = backend.kv_head_bytes(shape.head_dim, shape.kv_format);
      blocks.resize(given.size());
      for (size_t i = 0; i < given.size(); ++i) {
        const KvView<Byte>& kv = given[i].kv;
        for (const KvHeads<Byte>& block : kv.blocks) {
          const int64_t last = (kv.first_head + shape.num_kv_heads - 1) * block.stride;
          blocks[i].push_back({backend.at(block.data, last + head_bytes), block.stride});
        }
        segments.push_back(given[i]);
        segments.back().kv.blocks = blocks[i];
        rows = std::max(rows, given[i].row + given[i].rows);
      }
    }
    std::vector<std::vector<KvHeads<Byte>>> blocks;
    std::vector<Given> segments;
    int64_t rows = 0;  // rows of the pass
  };

  std::shared_ptr<Allocations> allocations_ = std::make_shared<Allocations>();
  std::unique_ptr<Backend> inner_;
};

}  // namespace

std::unique_ptr<Backend> make_guarded_backend(std::unique_ptr<Backend> backend) {
  return std::make_unique<GuardedBackend>(std::move(backend));
}

}  // namespace gemlet
