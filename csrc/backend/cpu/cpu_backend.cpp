#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/fork_mutex.h"
#include "formats/quantize.h"

namespace gemlet {
namespace {

// A pass of at most this many rows gets the threads for decoding. From about 8 rows on, arithmetic limits the speed,
// both for sequences and for a prompt (benchmarks/SPEED.md).
constexpr int64_t kDecodeRows = 8;

// A product of at most this many rows is cut into small tasks. With more rows, large tasks are faster.
constexpr int64_t kFewRows = 8;

// Bytes of weights in a task of few rows: long enough to stream, short enough to even out the threads.
constexpr int64_t kTaskBytes = 64 * 1024;

// For products of many rows: the bytes of weights and of activations in a task, which fit into L2 together, and the
// least number of tasks for each thread.
constexpr int64_t kWeightBytes = 256 * 1024;
constexpr int64_t kActivationBytes = 256 * 1024;
constexpr int64_t kTasksPerThread = 4;
// A task has a multiple of so many rows of float32 activations, which are whole tiles of 4, 6 and 8 rows.
constexpr int64_t kFloatRows = 24;

// For products in tiles: the most rows and the most panels of a task, and the least number of tasks for each thread.
constexpr int64_t kTileRowBlock = 512;
constexpr int64_t kTilePanels = 12;
constexpr int64_t kTileTasks = 3;

// Divides `rows` into as few equal pieces of at most `most` as possible. Returns the rows of a piece, a multiple of
// `step`.
int64_t pieces_of(int64_t rows, int64_t most, int64_t step = 16) {
  const int64_t pieces = (rows + most - 1) / most;
  return ((rows + pieces - 1) / pieces + step - 1) / step * step;
}

// `bytes`, rounded up to whole cache lines.
int64_t lines_of(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

struct Pages : DeviceMemory::Keeper {
  explicit Pages(size_t bytes) : buffer(bytes) {}
  AlignedBuffer buffer;
};

}  // namespace

CpuBackend::CpuBackend(Tier tier, const BackendOptions& options)
    : tier_(tier),
      pool_(std::max(options.threads, options.decode_threads), options.fewer_will_do),
      threads_(std::min(options.threads, pool_.threads())),
      decode_threads_(std::min(options.decode_threads, pool_.threads())),
      kernels_(kernels::kernels_for(tier)) {
  if (options.exact_batches) kernels_ = kernels::with_exact_batches(kernels_);
  if (options.float_activations) kernels_ = kernels::with_float_activations(kernels_);
  pool_.use(threads_);
}

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  const TierChoice choice = choose_tier(detect_cpu(), std::getenv("GEMLET_CPU"));
  return std::make_unique<CpuBackend>(choice.tier, options);
}

void CpuBackend::begin_pass(int64_t rows) { pool_.use(rows <= kDecodeRows ? decode_threads_ : threads_); }

DeviceMemory CpuBackend::allocate(size_t bytes) {
  auto pages = std::make_unique<Pages>(bytes);
  uint8_t* const data = pages->buffer.data();
  return {data, bytes, std::move(pages)};
}

void CpuBackend::upload(const void* host, size_t bytes, void* memory) { std::memcpy(memory, host, bytes); }

void CpuBackend::download(const void* memory, size_t bytes, void* host) { std::memcpy(host, memory, bytes); }

void CpuBackend::leave_scratch_behind() {
  leave_behind(inputs_);
  leave_behind(tasks_);
  for (AlignedBuffer* buffer : {&prepared_, &expanded_, &attention_scratch_, &partials_}) leave_behind(*buffer);
}

int64_t CpuBackend::expansion_bytes(const Matrix& weight) const {
  return weight.format == Format::kBf12 ? std::max(kernels::expanded_bytes(1, weight.cols), kWeightBytes) : 0;
}

float* CpuBackend::scratch(AlignedBuffer& buffer, int64_t floats) {
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (buffer.size() < bytes) buffer = AlignedBuffer(bytes);
  return buffer.as<float>();
}

void CpuBackend::embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) {
  for_each_row(static_cast<int64_t>(ids.size()), table.cols, [&](int64_t row) {
    float* at = out + row * table.cols;
    unpack_row(table, ids[static_cast<size_t>(row)], at);
    for (int64_t i = 0; i < table.cols; ++i) at[i] *= scale;
  });
}

void CpuBackend::rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) {
  for_each_row(rows, dim, [&](int64_t row) { kernels_.rms_norm(x + row * dim, weight, eps, dim, out + row * dim); });
}

void CpuBackend::add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim,
                            float* residual) {
  for_each_row(rows, dim, [&](int64_t row) {
    if (weight) {
      kernels_.rms_norm_add(x + row * dim, weight, eps, dim, residual + row * dim);
    } else {
      kernels_.add(x + row * dim, dim, residual + row * dim);
    }
  });
}

void CpuBackend::gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows,
                          int64_t dim, float* out) {
  for_each_row(rows, dim, [&](int64_t row) {
    kernels_.gelu_mul(gate + row * gate_stride, up + row * up_stride, dim, out + row * dim);
  });
}

void CpuBackend::exact_gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride,
                                int64_t rows, int64_t dim, float* out) {
  for_each_row(rows, dim, [&](int64_t row) {
    kernels_.exact_gelu_mul(gate + row * gate_stride, up + row * up_stride, dim, out + row * dim);
  });
}

void CpuBackend::softcap(float cap, int64_t rows, int64_t dim, float* x) {
  for_each_piece(rows * dim, [&](int64_t first, int64_t floats) { kernels_.softcap(cap, floats, x + first); });
}

MatmulInput CpuBackend::input_of(const Matrix& weight, int64_t rows) const {
  MatmulInput input = {};
  input.operation = &kernels::matmul_for(kernels_, weight, rows);
  const kernels::Activations form = input.operation->activations;
  const bool as_it_is = form == kernels::Activations::kF32;
  input.cols = as_it_is ? weight.cols : padded_cols(weight.format, weight.cols);
  input.stride = kernels::activation_row_bytes(form, input.cols);
  input.prepared_bytes = as_it_is ? 0 : kernels::activation_bytes(form, rows, input.stride);
  const bool by_kernel = form == kernels::Activations::kS8;
  if (weight.rounding.input > 0 && !by_kernel) input.rounded_bytes = lines_of(rows * weight.cols * 4);
  return input;
}

int64_t CpuBackend::prepared_bytes(const Matrix& weight, int64_t rows) const {
  const MatmulInput input = input_of(weight, rows);
  return input.prepared_bytes + input.rounded_bytes;
}

// Activations in the form that each product's kernel takes. If they have to be converted, neighbouring products that
// share them use one converted copy.
void CpuBackend::prepare_inputs(std::span<const Product> products) {
  inputs_.clear();
  int64_t bytes = 0;
  for (const Product& product : products) {
    const Matrix& weight = *product.weight;
    MatmulInput input = input_of(weight, product.rows);
    const kernels::Activations form = input.operation->activations;
    if (form == kernels::Activations::kF32 && input.rounded_bytes == 0) {
      input.data = reinterpret_cast<const uint8_t*>(product.x);
    } else if (!inputs_.empty()) {
      const MatmulInput& last = inputs_.back();
      const Product& other = products[inputs_.size() - 1];
      input.shared = product.x == other.x && product.rows == other.rows && form == last.operation->activations &&
                     input.stride == last.stride && zero_point(weight.format) == zero_point(other.weight->format) &&
                     weight.rounding.input == other.weight->rounding.input;
    }
    if (!input.shared) bytes += input.prepared_bytes + input.rounded_bytes;
    inputs_.push_back(input);
  }
  uint8_t* at = reinterpret_cast<uint8_t*>(scratch(prepared_, bytes / 4));
  for (size_t i = 0; i < products.size(); ++i) {
    const Product& product = products[i];
    MatmulInput& input = inputs_[i];
    if (input.shared) {
      input.data = inputs_[i - 1].data;
    } else if (input.data == nullptr) {
      const int64_t cols = product.weight->cols;
      const kernels::Activations form = input.operation->activations;
      const float scale = product.weight->rounding.input;
      const float* x = product.x;
      if (input.rounded_bytes > 0) {
        float* const rounded = reinterpret_cast<float*>(at);
        for_each_row(product.rows, cols,
                     [&](int64_t row) { kernels_.round_s8(x + row * cols, scale, cols, rounded + row * cols); });
        input.data = at;
        at += input.rounded_bytes;
        x = rounded;
      }
      if (form == kernels::Activations::kF32) continue;
      for_each_row(product.rows, cols, [&](int64_t row) {
        kernels::prepare_row(kernels_, *input.operation, x + row * cols, cols,
                             at + kernels::activation_offset(form, row, input.stride), scale);
      });
      input.data = at;
      at += input.prepared_bytes;
    }
  }
}

void CpuBackend::matmul(std::span<const Product> products) {
  prepare_inputs(products);
  tasks_.clear();
  int64_t expansion = 0;  // bytes that a task expands
  int64_t bytes = 0;      // bytes of weights that the tasks read
  for (size_t i = 0; i < products.size(); ++i) {
    const Product& product = products[i];
    const MatmulInput& input = inputs_[i];
    const Matrix& weight = *product.weight;
    // A task is a run of panels times a block of rows. In tiles, it has as many rows as can share the expanded weights,
    // and enough panels to share the loading of the rows into L2.
    const int64_t stride = panel_bytes(weight.format, weight.cols);
    const int64_t y_stride = product.y_stride > 0 ? product.y_stride : weight.rows;
    int64_t run = std::clamp<int64_t>(kTaskBytes / stride, 1, 64);
    const int64_t most_rows = kActivationBytes / input.stride;
    int64_t row_block =
        input.operation->activations == kernels::Activations::kF32
            ? pieces_of(product.rows, std::max<int64_t>(most_rows / kFloatRows, 1) * kFloatRows, kFloatRows)
            : pieces_of(product.rows, std::max<int64_t>(most_rows, 16));
    if (product.rows > kFewRows) {
      const int64_t most = std::max<int64_t>(weight.panels() / (kTasksPerThread * threads()), 1);
      run = std::clamp<int64_t>(kWeightBytes / stride, 1, most);
    }
    const bool tiles = input.operation->in_tiles() && product.rows > kFewRows;
    const bool expand = weight.format == Format::kBf12 && product.rows > kFewRows && !tiles;
    if (expand) {  // once for as many rows as tiles take
      run = std::clamp<int64_t>(kWeightBytes / kernels::expanded_bytes(1, weight.cols), 1, run);
      row_block = pieces_of(product.rows, kTileRowBlock);
      expansion = std::max(expansion, kernels::expanded_bytes(run * kPanelRows, weight.cols));
    }
    if (tiles) {
      run = std::clamp<int64_t>(weight.panels() / (kTileTasks * threads()) / 2 * 2, 2, kTilePanels);
      row_block = pieces_of(product.rows, kTileRowBlock);
    }
    for (int64_t row = 0; row < product.rows; row += row_block) {
      bytes += weight.bytes();
      for (int64_t panel = 0; panel < weight.panels(); panel += run) {
        kernels::MatmulArgs args = {};
        args.x = input.data + row * input.stride;
        args.x_stride = input.stride;
        args.rows = std::min(row_block, product.rows - row);
        args.panels = weight.panel(panel);
        args.panel_stride = stride;
        args.cols = input.cols;
        args.y = product.y + row * y_stride + panel * kPanelRows;
        args.y_stride = y_stride;
        args.outputs = std::min(run * kPanelRows, weight.rows - panel * kPanelRows);
        tasks_.push_back({args, kernels_.*input.operation->kernel, expand, weight.rounding.output});
      }
    }
  }
  bytes_read_.fetch_add(bytes, std::memory_order_relaxed);
  uint8_t* const expanded = reinterpret_cast<uint8_t*>(scratch(expanded_, expansion / 4 * threads_));
  pool_.run(static_cast<int64_t>(tasks_.size()), [&](int64_t index, int thread) {
    MatmulTask& task = tasks_[static_cast<size_t>(index)];
    if (task.expand) task.args.scratch = expanded + thread * expansion;
    task.kernel(task.args);
    for (int64_t row = 0; task.output > 0 && row < task.args.rows; ++row) {
      float* const y = task.args.y + row * task.args.y_stride;
      kernels_.round_s8(y, task.output, task.args.outputs, y);
    }
  });
}

void CpuBackend::parallel(int64_t tasks, void (*fn)(const void* context, int64_t task), const void* context) {
  pool_.run(tasks, [&](int64_t task, int) { fn(context, task); });
}

}  // namespace gemlet
