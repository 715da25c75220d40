// The operations that a device must have. They are coarse: each works on [rows, dim] activations in float32. The model
// calls only this interface, so it knows nothing about threads and instruction sets.
//
// Unless a comment says otherwise, a pointer is an address in the backend's own memory (allocate()), and a span is
// memory of the host. Code outside of the backend never reads or writes the backend's memory; tests with
// backend/guarded.h prove this.
//
// Calls come from one thread at a time, except allocate(), upload() and download(), which may come from any.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/device_memory.h"
#include "formats/formats.h"
#include "formats/row_table.h"

namespace gemlet {

// One product of a matmul call: y [rows, weight->rows] = x [rows, weight->cols] * weight^T. `y_stride` is the distance
// between rows of y in floats; 0 means weight->rows.
struct Product {
  const float* x;
  int64_t rows;
  const Matrix* weight;
  float* y;
  int64_t y_stride = 0;
};

// The heads of one cache block. Each head has the keys and values of kKvBlockTokens tokens. If Byte is const, they can
// only be read.
template <typename Byte>
struct KvHeads {
  Byte* data;
  int64_t stride;  // bytes from one head to the next
  Byte* head(int64_t index) const { return data + index * stride; }
};
using KvBlock = KvHeads<const uint8_t>;
using WritableKvBlock = KvHeads<uint8_t>;

// Blocks of one sequence in one layer.
template <typename Byte>
struct KvView {
  std::span<const KvHeads<Byte>> blocks;  // blocks[i]: tokens [64 (first_block + i), + 64)
  int64_t first_block;
  int64_t first_head;  // the layer's first head in each block
  Byte* head(int64_t index, int64_t block) const {
    return blocks[static_cast<size_t>(block - first_block)].head(first_head + index);
  }
};

// Rows of the pass that are consecutive tokens of one sequence.
template <typename Byte>
struct KvSegment {
  KvView<Byte> kv;
  int64_t row;  // index of the first of these rows in the pass
  int64_t rows;
  int64_t position;  // absolute position of that row
};
using StoreSegment = KvSegment<uint8_t>;

// Consecutive tokens [begin, end) that see each other in both directions.
struct TokenSpan {
  int64_t begin, end;
};

struct AttentionSegment : KvSegment<const uint8_t> {
  std::span<const TokenSpan> spans;  // absolute positions, in order; only those that contain one of the rows
};

struct AttentionShape {
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t window;      // 0 = full attention
  bool bidirectional;  // a token sees as many tokens after it, within its segment, as before it
  float softcap;       // 0 = none
  float query_scale;
  KvFormat kv_format;
  // Parts of a head. Each is rotated like a separate head, by the angles after those of the part before it.
  int64_t rope_parts = 1;
};

// A convolution with square kernels over a grid [rows, cols, channels]. The grid is padded with zeros: `top` rows
// before the first row, and as many rows after the last one as the kernels reach. Columns are padded in the same way,
// with `left`.
struct Convolution {
  int64_t rows, cols, channels;
  int64_t kernel, stride;
  int64_t top, left;
  int64_t out_rows() const { return (rows + stride - 1) / stride; }
  int64_t out_cols() const { return (cols + stride - 1) / stride; }
};

// Attention of each row over itself and the rows just before it.
struct LocalAttention {
  int64_t num_heads, head_dim;
  int64_t keys;  // the most keys that a row sees, including its own; at most 256
  float softcap;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string tier() const = 0;
  virtual int threads() const = 0;
  virtual int decode_threads() const = 0;
  // Says that a pass begins, over `rows` tokens of all sequences together. Memory limits passes with few rows, and
  // arithmetic those with many, so each kind of pass has its own number of threads.
  virtual void begin_pass(int64_t rows) = 0;

  // Memory filled with zeros, aligned to 64 bytes at least. Throws kMemory.
  virtual DeviceMemory allocate(size_t bytes) = 0;
  // Copies between `host` and an address of the backend. The copy is complete when the call returns.
  virtual void upload(const void* host, size_t bytes, void* memory) = 0;
  virtual void download(const void* memory, size_t bytes, void* host) = 0;
  // Whether the backend's memory is the host's. Then all addresses of the host, for example in a mapped file, are
  // addresses of the backend and the other way round, and nothing needs to be copied.
  virtual bool host_memory() const = 0;

  // Bytes that allocate() can still give, if the backend's memory is not the host's.
  virtual int64_t free_memory() = 0;

  // For a forked process: takes new scratch memory, because a thread of the parent may have been changing the old one.
  virtual void leave_scratch_behind() = 0;
  // Bytes of matrices, keys and values that kernels were given to read so far. Any thread may call it.
  virtual int64_t bytes_read() const = 0;

  // Whether the backend can multiply by matrices of this format and rounding. It does not read the weight's values.
  virtual bool multiplies(const Matrix& weight) const = 0;

  // Whether the backend can compute attention over a cache of this format.
  virtual bool attends(KvFormat format) const = 0;

  // The next four functions are for memory plans.
  // Bytes of x [rows, weight.cols] in the form that the kernel of a product with `weight` takes; 0 if that is float32.
  // It does not read the weight's values.
  virtual int64_t prepared_bytes(const Matrix& weight, int64_t rows) const = 0;
  // Bytes that each thread keeps after a product of many rows with `weight`.
  virtual int64_t expansion_bytes(const Matrix& weight) const = 0;
  // Bytes of a head of head_dim in a block of the cache.
  virtual int64_t kv_head_bytes(int64_t head_dim, KvFormat format) const = 0;
  // Bytes that the backend keeps after attention over `tokens` keys, apart from a little for each thread.
  virtual int64_t attention_bytes(int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t tokens) const = 0;

  // out [ids, dim] = scale * table[ids]
  virtual void embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) = 0;

  // out [rows, dim] = rms_norm(x) * weight
  virtual void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) = 0;

  // residual [rows, dim] += weight ? rms_norm(x) * weight : x
  virtual void add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim,
                          float* residual) = 0;

  // Computes all products, each rounded as its matrix says. Products that share x should be neighbours, because x is
  // then prepared once.
  virtual void matmul(std::span<const Product> products) = 0;

  // out [rows, dim] = gelu_tanh(gate) * up; `gate_stride` and `up_stride` are the distances between rows of gate and of
  // up, in floats. out may be gate if gate_stride is dim.
  virtual void gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows,
                        int64_t dim, float* out) = 0;

  // The same with the exact gelu(x) = x/2 (1 + erf(x / sqrt(2))), if the backend has it.
  virtual bool has_exact_gelu() const { return false; }
  virtual void exact_gelu_mul(const float*, int64_t, const float*, int64_t, int64_t, int64_t, float*) {}

  // x [rows, dim]: x = max(0, x - (mean + deviations * standard deviation)), both over the row
  virtual void gaussian_topk(float deviations, int64_t rows, int64_t dim, float* x) = 0;

  // The product of one row, for outputs whose gate [outputs] is not 0. A panel of weights without such an output is not
  // read, and its outputs are 0.
  virtual void matmul_where(const Product& product, const float* gate) = 0;

  // cosines and sines [positions, frequencies] of position * frequency
  virtual void rope_angles(std::span<const float> frequencies, std::span<const int64_t> positions, float* cosines,
                           float* sines) = 0;

  // In place on q [rows, heads, head_dim] and k [rows, kv_heads, head_dim]: head norms (null weight = none), rotation
  // by cosines/sines [rows, head_dim / 2], query_scale on q. Then v gets an RMS norm without weight if v_norm, and k
  // and v go into the cache at their rows' positions. If k is null, the cache has the keys and values already, or the
  // layer reads the cache of another layer. If q is null, only keys and values are handled. If cosines is null, nothing
  // is rotated.
  virtual void rope_and_store(const AttentionShape& shape, std::span<const StoreSegment> segments, float* q, float* k,
                              float* v, const float* q_norm, const float* k_norm, bool v_norm, float eps,
                              const float* cosines, const float* sines) = 0;

  // out [rows, heads, head_dim] = attention of q, as rope_and_store() left it, over the cache
  virtual void attention(const AttentionShape& shape, std::span<const AttentionSegment> segments, const float* q,
                         float* out) = 0;

  // x = cap * tanh(x / cap)
  virtual void softcap(float cap, int64_t rows, int64_t dim, float* x) = 0;

  virtual void copy(const float* x, int64_t count, float* out) = 0;
  virtual void copy_bytes(const uint8_t* from, int64_t bytes, uint8_t* to) = 0;
  virtual void scale(float factor, int64_t count, float* x) = 0;
  virtual void scale_by(const float* factor, int64_t count, float* x) = 0;  // factor [1]
  // out [rows, dim] = x * weight [dim]
  virtual void mul_rows(const float* x, const float* weight, int64_t rows, int64_t dim, float* out) = 0;

  // out [i, dim] = x[rows[i], dim]
  virtual void gather(const float* x, std::span<const int32_t> rows, int64_t dim, float* out) = 0;
  // out [rows, dim] = sum over j < per_row of weights[i * per_row + j] * x[places[i * per_row + j], dim], in the order
  // of j
  virtual void combine(const float* x, std::span<const int32_t> places, std::span<const float> weights, int64_t per_row,
                       int64_t dim, float* out) = 0;
  // x [ids, cols] = (x + table_scale * table[ids]) * out_scale
  virtual void add_table_rows(const RowTable& table, std::span<const int32_t> ids, float table_scale, float out_scale,
                              float* x) = 0;

  // Chooses `count` experts for each row of logits [rows, experts]: those with the largest softmax, and of equal ones
  // the lower index first. Their softmax values are renormalised to sum 1 and multiplied by scale [experts]. Both
  // results, ids and weights [rows, count], are in memory of the host.
  virtual void route(const float* logits, const float* scale, int64_t rows, int64_t experts, int64_t count,
                     int32_t* ids, float* weights) = 0;

  // AltUp over streams [S, rows, dim], with m = tanh(input_scale * modalities) for modalities [rows, S]. Each row has
  // its own pointer to coefficients.
  //   predict: out[k] = x[k] + sum_j (coefs [S*S, S] m)[k * S + j] x[j]
  //   correct: out[k] = predicted[k] + ((coefs [S, S] m)[k] + 1) (activated - predicted[0])
  virtual void altup_predict(const float* x, const float* modalities, float input_scale,
                             std::span<const float* const> coefs, int64_t streams, int64_t dim, float* out) = 0;
  virtual void altup_correct(const float* predicted, const float* activated, const float* modalities, float input_scale,
                             std::span<const float* const> coefs, int64_t streams, int64_t dim, float* out) = 0;
  // x [rows, dim] *= rms(target) / sqrt(max(mean(x^2), 1e-5)): the magnitude of target's rows
  virtual void match_magnitude(const float* target, int64_t rows, int64_t dim, float* x) = 0;

  // The next operations are for the towers for images and sound.
  // out [rows, dim] = (x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over the row; bias null:
  // none
  virtual void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t rows, int64_t dim,
                          float* out) = 0;
  // x [rows, dim] += bias [dim]
  virtual void add_bias(const float* bias, int64_t rows, int64_t dim, float* x) = 0;
  // x [rows, dim] = gelu_tanh(x + bias [dim]); bias null: none
  virtual void bias_gelu(const float* bias, int64_t rows, int64_t dim, float* x) = 0;
  // out [rows / k * cols / k, dim] = the mean over each cell of k x k of the grid x [rows, cols, dim], row by row
  virtual void mean_pool(const float* x, int64_t rows, int64_t cols, int64_t dim, int64_t k, float* out) = 0;
  // out = min(max(x, low), high). out may be x.
  virtual void clamp(const float* x, float low, float high, int64_t count, float* out) = 0;
  virtual void add_scaled(const float* x, float factor, int64_t count, float* y) = 0;  // y += factor * x
  virtual void silu(int64_t count, float* x) = 0;                                      // x = x * sigmoid(x)
  // out [rows, dim] = x[:, :dim] * sigmoid(x[:, dim:]) of x [rows, 2 * dim]
  virtual void sigmoid_mul(const float* x, int64_t rows, int64_t dim, float* out) = 0;
  // The inputs of each place of the output rows [first_row, first_row + rows) of a convolution, in the order of its
  // weights: out [rows * out_cols, channels * kernel * kernel].
  virtual void unfold(const Convolution& convolution, const float* x, int64_t first_row, int64_t rows, float* out) = 0;
  // A separate convolution of each channel: out [rows * out_cols, channels] for the same rows, weight [kernel * kernel,
  // channels]
  virtual void depthwise(const Convolution& convolution, const float* x, const float* weight, int64_t first_row,
                         int64_t rows, float* out) = 0;
  // x [cells, channels] = max(0, layer norm over the channels, without bias)
  virtual void norm_relu(const float* weight, float eps, int64_t cells, int64_t channels, float* x) = 0;
  // x [frames, cells, channels] = max(0, (x - mean) / sqrt(variance + eps) * weight [channels]). The mean of a frame is
  // taken over all frames up to it. Its variance is the mean, over the same frames, of the squared distances from each
  // frame's own mean.
  virtual void cumulative_norm_relu(const float* weight, float eps, int64_t frames, int64_t cells, int64_t channels,
                                    float* x) = 0;
  // out[t] = sum over j < taps of weight[j] * x[t - taps + 1 + j], for each of dim columns; weight [taps, dim]. Before
  // x there are zeros.
  virtual void causal_convolution(const float* x, const float* weight, int64_t taps, int64_t rows, int64_t dim,
                                  float* out) = 0;
  // out [rows, heads, head_dim]: softmax of softcap(q_t . k_s + q_t . relative[t - s]) times v_s, for s from t - keys +
  // 1 to t; relative [keys, heads, head_dim]
  virtual void local_attention(const LocalAttention& shape, const float* q, const float* k, const float* v,
                               const float* relative, int64_t rows, float* out) = 0;

  // Runs fn(task) for tasks [0, tasks) on the backend's host threads; for packing weights and choosing tokens.
  virtual void parallel(int64_t tasks, void (*fn)(const void* context, int64_t task), const void* context) = 0;
};

struct BackendOptions {
  int threads = 1, decode_threads = 1;
  bool fewer_will_do = false;  // if the system grants fewer threads: true: uses those; false: throws kMemory
  bool exact_batches = false;  // no tiles: the bits of a row do not depend on how many others are multiplied with it
  bool float_activations = false;  // activations for float weights are not rounded to bf16
};

// The tier is the machine's highest, or what GEMLET_CPU forces.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

// The next two functions throw kUnsupported if no GPU can be used.
void check_cuda();
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

// The GPUs of this machine. If one cannot be used, its `refusal` says why. cuda_info() throws nothing.
struct GpuInfo {
  std::string name;
  int capability;       // 80 for 8.0
  int64_t memory;       // bytes
  std::string refusal;  // empty: it can be used
};
struct CudaInfo {
  std::string refusal;  // why the device 'cuda' cannot be used; empty: it can be used
  int version = 0;      // the driver's version of CUDA, 13000 for 13.0; 0: there is no driver
  std::vector<GpuInfo> gpus;
};
CudaInfo cuda_info();

// Makes the backend of the device with this name, "cpu" or "cuda". Throws kUnsupported if this build or this machine
// does not have the device. check_device() throws the same errors, but makes nothing.
void check_device(const std::string& name);
std::unique_ptr<Backend> make_backend(const std::string& device, const BackendOptions& options);

}  // namespace gemlet
