#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "backend/cuda/launch_sizes.h"
#include "base/error.h"

namespace gemlet {
namespace cuda {
namespace {

constexpr int kMatmulThreads = 128;  // the four warps of a block in matmul.cu
constexpr int64_t kFewRows = 8;      // the most rows of a product without tiles; more rows are multiplied in tiles
constexpr int64_t kSplitRows = 8;    // segments with more rows fill the GPU without splitting their keys
constexpr int64_t kMostPartialBytes = int64_t{16} << 20;
constexpr int64_t kTableBytes = int64_t{1} << 20;  // bytes of a per-layer table that are sent at a time

static_assert(static_cast<int>(Kernel::matmul_q4_8) - static_cast<int>(Kernel::matmul_f32_1) ==
              4 * static_cast<int>(Format::kQ4) + 3);
static_assert(static_cast<int>(Kernel::matmul_r8_1) - static_cast<int>(Kernel::matmul_q4_8) == 1 &&
              static_cast<int>(Format::kR8) == static_cast<int>(Format::kW4a16) + 1);

int64_t quotient(int64_t count, int64_t size) { return (count + size - 1) / size; }  // rounded up
int64_t size_of(size_t count) { return static_cast<int64_t>(count); }

Weight weight_of(const Matrix& matrix) {
  return {matrix.data, matrix.rows, matrix.cols, panel_bytes(matrix.format, matrix.cols), matrix.format};
}

// Returns the kernel that comes `index` places after `first` in the list.
Kernel next(Kernel first, int index) { return static_cast<Kernel>(static_cast<int>(first) + index); }

// Returns the kernel for few rows. The formats are in the order of the list, and each format has kernels for 1, 2, 4
// and 8 rows. w4a16 has no such kernels.
Kernel few_kernel(Format format, int64_t rows) {
  const int size = rows == 1 ? 0 : rows == 2 ? 1 : rows <= 4 ? 2 : 3;
  const int place = static_cast<int>(format) - (format > Format::kW4a16);
  return next(Kernel::matmul_f32_1, 4 * place + size);
}

// Returns the kernel for many rows, which computes in tiles. Three kinds of formats have none. f32 would lose too much
// precision in bf16. bf12 has exceptions, which the code for tiles does not handle. The inputs of r8, r4 and r2 are
// integers times a scale, and bf16 cannot hold these products.
std::optional<Kernel> tile_kernel(Format format) {
  switch (format) {
    case Format::kF32:
    case Format::kBf12:
    case Format::kR8:
    case Format::kR4:
    case Format::kR2:
      return std::nullopt;
    case Format::kBf16:
      return Kernel::matmul_bf16_tiles;
    default:
      return next(Kernel::matmul_q8_tiles, static_cast<int>(format) - static_cast<int>(Format::kQ8));
  }
}

Kernel attention_kernel(KvFormat format, int64_t head_dim) {
  const Kernel first = format == KvFormat::kF32    ? Kernel::attention_f32_32
                       : format == KvFormat::kBf16 ? Kernel::attention_bf16_32
                                                   : Kernel::attention_int8_32;
  int index = 0;
  while (int64_t{32} << index < head_dim) ++index;
  return next(first, index);
}

// Memory of the device. An allocation keeps the device open, so it may outlive the backend.
class Allocation : public DeviceMemory::Keeper {
 public:
  Allocation(std::shared_ptr<Device> device, size_t bytes)
      : device_(std::move(device)), data_(device_->allocate(bytes)) {}
  ~Allocation() override { device_->free(data_); }
  uint8_t* data() { return data_; }

 private:
  std::shared_ptr<Device> device_;
  uint8_t* data_;
};

}  // namespace

CudaBackend::CudaBackend(const BackendOptions& options)
    : exact_batches_(options.exact_batches), pool_(std::max(1, options.threads), options.fewer_will_do) {}

CudaBackend::Gpu& CudaBackend::gpu() {
  std::call_once(opened_, [this] { gpu_ = std::make_unique<Gpu>(); });
  return *gpu_;
}

void CudaBackend::begin_pass(int64_t rows) {
  gpu().device->record(rows <= kFewRows);
  gpu().parameters.rewind();
}

DeviceMemory CudaBackend::allocate(size_t bytes) {
  if (bytes == 0) return {};
  auto allocation = std::make_unique<Allocation>(gpu().device, bytes);
  uint8_t* const data = allocation->data();
  return {data, bytes, std::move(allocation)};
}

void CudaBackend::upload(const void* host, size_t bytes, void* memory) { gpu().device->upload(host, bytes, memory); }

void CudaBackend::download(const void* memory, size_t bytes, void* host) {
  gpu().device->download(memory, bytes, host);
}

uint8_t* CudaBackend::scratch(DeviceMemory& memory, size_t bytes) {
  if (memory.size() < bytes) {
    gpu().device->synchronize();
    memory = {};
    memory = allocate(bytes);
  }
  return memory.data();
}

void CudaBackend::launch(Kernel kernel, const Grid& grid, int threads, int64_t shared_bytes, const void* args) {
  if (grid.x > 0 && grid.y > 0) gpu().device->launch(kernel, grid, threads, shared_bytes, args);
}

void CudaBackend::for_each_number(Kernel kernel, int64_t count, int64_t rows, const void* args) {
  launch(kernel, {quotient(count, kThreads), rows}, kThreads, 0, args);
}

void CudaBackend::for_each_row(Kernel kernel, int64_t rows, const void* args) {
  launch(kernel, {rows}, kThreads, kReduceBytes, args);
}

void CudaBackend::parallel(int64_t tasks, void (*fn)(const void* context, int64_t task), const void* context) {
  pool_.run(tasks, [&](int64_t task, int) { fn(context, task); });
}

// --- Products ---

// Returns the input after the rounding that the matrix needs.
const float* CudaBackend::round_input(const Product& product) {
  const int64_t cols = product.weight->cols;
  float* const rounded = reinterpret_cast<float*>(scratch(rounded_, static_cast<size_t>(product.rows * cols) * 4));
  const RoundArgs args = {product.x, product.weight->rounding.input, cols, cols, rounded};
  for_each_number(Kernel::round_rows, cols, product.rows, &args);
  return rounded;
}

void CudaBackend::multiply(const Product& product, const float* x, const float* gate) {
  const Matrix& weight = *product.weight;
  const bool vectors = weight.cols % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const int64_t y_stride = product.y_stride > 0 ? product.y_stride : weight.rows;
  const MatmulArgs args = {weight_of(weight), x, product.y, product.rows, y_stride, vectors, gate};
  const std::optional<Kernel> tiles = tile_kernel(weight.format);
  const bool in_tiles = product.rows > kFewRows && !exact_batches_ && tiles && weight.rounding.input == 0;
  const Grid grid = in_tiles ? Grid{quotient(weight.rows, kTileOutputs), quotient(product.rows, kProductRows)}
                             : Grid{weight.panels(), quotient(product.rows, kFewRows)};
  bytes_read_.fetch_add(weight.bytes() * grid.y, std::memory_order_relaxed);
  if (in_tiles) {
    launch(*tiles, grid, kMatmulThreads, kTileSharedBytes, &args);
  } else {
    const int64_t rows = std::min(product.rows, kFewRows), size = rows <= 2 ? rows : rows <= 4 ? 4 : 8;
    launch(few_kernel(weight.format, rows), grid, kMatmulThreads, 4 * size * kPanelRows * 4, &args);
  }
  if (weight.rounding.output > 0) {
    const RoundArgs round = {product.y, weight.rounding.output, weight.rows, y_stride, product.y};
    for_each_number(Kernel::round_rows, weight.rows, product.rows, &round);
  }
}

void CudaBackend::matmul(std::span<const Product> products) {
  const Product* before = nullptr;  // the product whose rounded input is in memory
  for (const Product& product : products) {
    const StaticRounding& rounding = product.weight->rounding;
    const float* x = product.x;
    if (rounding.input > 0) {
      const bool same = before && before->x == x && before->rows == product.rows &&
                        before->weight->cols == product.weight->cols &&
                        before->weight->rounding.input == rounding.input;
      x = same ? rounded_.as<const float>() : round_input(product);
      before = &product;
    }
    multiply(product, x, nullptr);
  }
}

void CudaBackend::matmul_where(const Product& product, const float* gate) {
  multiply(product, product.weight->rounding.input > 0 ? round_input(product) : product.x, gate);
}

void CudaBackend::embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) {
  const EmbedArgs args = {weight_of(table), gpu().parameters.put(ids), scale, out};
  for_each_row(Kernel::embed, size_of(ids.size()), &args);
}

// --- Rows ---

void CudaBackend::rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) {
  const NormArgs args = {x, weight, eps, dim, out};
  for_each_row(Kernel::rms_norm, rows, &args);
}

void CudaBackend::add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim,
                             float* residual) {
  if (weight) {
    const NormArgs args = {x, weight, eps, dim, residual};
    for_each_row(Kernel::rms_norm_add, rows, &args);
  } else {
    const FactorArgs args = {x, nullptr, 1, rows * dim, dim, residual};
    for_each_number(Kernel::add, rows * dim, 1, &args);
  }
}

void CudaBackend::gelu_mul(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t rows,
                           int64_t dim, float* out) {
  const GeluArgs args = {gate, up, gate_stride, up_stride, dim, out};
  for_each_number(Kernel::gelu_mul, dim, rows, &args);
}

void CudaBackend::gaussian_topk(float deviations, int64_t rows, int64_t dim, float* x) {
  const RowArgs args = {nullptr, deviations, dim, x};
  for_each_row(Kernel::gaussian_topk, rows, &args);
}

void CudaBackend::match_magnitude(const float* target, int64_t rows, int64_t dim, float* x) {
  const RowArgs args = {target, 0, dim, x};
  for_each_row(Kernel::match_magnitude, rows, &args);
}

void CudaBackend::softcap(float cap, int64_t rows, int64_t dim, float* x) {
  const FactorArgs args = {x, nullptr, cap, rows * dim, dim, x};
  for_each_number(Kernel::softcap, rows * dim, 1, &args);
}

void CudaBackend::scale(float factor, int64_t count, float* x) {
  const FactorArgs args = {x, nullptr, factor, count, count, x};
  for_each_number(Kernel::scale, count, 1, &args);
}

void CudaBackend::scale_by(const float* factor, int64_t count, float* x) {
  const FactorArgs args = {x, factor, 1, count, count, x};
  for_each_number(Kernel::scale_by, count, 1, &args);
}

void CudaBackend::mul_rows(const float* x, const float* weight, int64_t rows, int64_t dim, float* out) {
  const FactorArgs args = {x, weight, 1, rows * dim, dim, out};
  for_each_number(Kernel::mul_rows, rows * dim, 1, &args);
}

void CudaBackend::copy(const float* x, int64_t count, float* out) {
  copy_bytes(reinterpret_cast<const uint8_t*>(x), count * 4, reinterpret_cast<uint8_t*>(out));
}

void CudaBackend::copy_bytes(const uint8_t* from, int64_t bytes, uint8_t* to) {
  const CopyArgs args = {from, to, bytes,
                         (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0};
  for_each_number(Kernel::copy_bytes, args.units ? quotient(bytes, 16) : bytes, 1, &args);
}

void CudaBackend::gather(const float* x, std::span<const int32_t> rows, int64_t dim, float* out) {
  const GatherArgs args = {x, gpu().parameters.put(rows), nullptr, 1, dim, out};
  for_each_number(Kernel::gather, dim, size_of(rows.size()), &args);
}

void CudaBackend::combine(const float* x, std::span<const int32_t> places, std::span<const float> weights,
                          int64_t per_row, int64_t dim, float* out) {
  const GatherArgs args = {x, gpu().parameters.put(places), gpu().parameters.put(weights), per_row, dim, out};
  for_each_number(Kernel::combine, dim, size_of(places.size()) / per_row, &args);
}

// The host reads the table, a few rows at a time, while the device adds the rows that it already has.
void CudaBackend::add_table_rows(const RowTable& table, std::span<const int32_t> ids, float table_scale,
                                 float out_scale, float* x) {
  const int64_t cols = table.cols(), rows = size_of(ids.size());
  const int64_t each = std::clamp<int64_t>(kTableBytes / (cols * 4), 1, std::max<int64_t>(rows, 1));
  for (int64_t first = 0; first < rows; first += each) {
    const int64_t count = std::min(each, rows - first);
    const size_t bytes = static_cast<size_t>(count * cols) * sizeof(float);
    const Parameters::Room room = gpu().parameters.room(bytes);
    float* const values = reinterpret_cast<float*>(room.host);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t id = ids[static_cast<size_t>(first + i)];
      table.read(id < table.rows() ? id : 0, values + i * cols);
    }
    gpu().parameters.send(room, bytes);
    const TableArgs args = {reinterpret_cast<const float*>(room.memory), table_scale, out_scale, count * cols,
                            x + first * cols};
    for_each_number(Kernel::add_table, count * cols, 1, &args);
  }
}

void CudaBackend::route(const float* logits, const float* scale, int64_t rows, int64_t experts, int64_t count,
                        int32_t* ids, float* weights) {
  const size_t numbers = static_cast<size_t>(rows * count);
  uint8_t* const out = scratch(routed_, numbers * 8);
  const RouteArgs args = {
      logits, scale, experts, count, reinterpret_cast<int32_t*>(out), reinterpret_cast<float*>(out + numbers * 4)};
  launch(Kernel::route, {rows}, 32, 0, &args);
  download(args.ids, numbers * 4, ids);
  download(args.weights, numbers * 4, weights);
}

void CudaBackend::altup_predict(const float* x, const float* modalities, float input_scale,
                                std::span<const float* const> coefs, int64_t streams, int64_t dim, float* out) {
  const int64_t rows = size_of(coefs.size());
  const AltupArgs args = {x, nullptr, modalities, gpu().parameters.put(coefs), input_scale, rows, streams, dim, out};
  for_each_number(Kernel::altup_predict, dim, rows, &args);
}

void CudaBackend::altup_correct(const float* predicted, const float* activated, const float* modalities,
                                float input_scale, std::span<const float* const> coefs, int64_t streams, int64_t dim,
                                float* out) {
  const int64_t rows = size_of(coefs.size());
  const AltupArgs args = {predicted, activated, modalities, gpu().parameters.put(coefs), input_scale, rows,
                          streams,   dim,       out};
  for_each_number(Kernel::altup_correct, dim, rows, &args);
}

// --- Attention ---

int64_t CudaBackend::kv_head_bytes(int64_t head_dim, KvFormat format) const {
  return kv_head_size(head_dim, bits_of(format) / 8);
}

int64_t CudaBackend::attention_bytes(int64_t num_heads, int64_t, int64_t head_dim, int64_t tokens) const {
  const int64_t splits = quotient(tokens, kPieceTokens) + 1;
  const int64_t partials = std::min(kMostPartialBytes, kSplitRows * num_heads * splits * (head_dim + 2) * 4);
  return partials + static_cast<int64_t>(Parameters::kLeastBytes);
}

void CudaBackend::rope_angles(std::span<const float> frequencies, std::span<const int64_t> positions, float* cosines,
                              float* sines) {
  const AnglesArgs args = {gpu().parameters.put(frequencies), gpu().parameters.put(positions),
                           size_of(frequencies.size()), cosines, sines};
  for_each_number(Kernel::rope_angles, args.frequency_count, size_of(positions.size()), &args);
}

void CudaBackend::rope_and_store(const AttentionShape& shape, std::span<const StoreSegment> segments, float* q,
                                 float* k, float* v, const float* q_norm, const float* k_norm, bool v_norm, float eps,
                                 const float* cosines, const float* sines) {
  std::vector<KvPlace> places;
  for (const StoreSegment& segment : segments) {
    places.resize(static_cast<size_t>(std::max(size_of(places.size()), segment.row + segment.rows)));
    for (int64_t i = 0; i < segment.rows; ++i) {
      const int64_t position = segment.position + i;
      KvPlace& place = places[static_cast<size_t>(segment.row + i)];
      place.position = position;
      if (!k) continue;
      const auto& block = segment.kv.blocks[static_cast<size_t>(position / kKvBlockTokens - segment.kv.first_block)];
      place.block = block.head(segment.kv.first_head);
      place.stride = block.stride;
    }
  }
  RopeArgs args = {};
  args.places = gpu().parameters.put(std::span<const KvPlace>(places));
  args.q = q;
  args.k = k;
  args.v = v;
  args.q_norm = q_norm;
  args.k_norm = k_norm;
  args.cosines = cosines;
  args.sines = sines;
  args.heads = shape.num_heads;
  args.kv_heads = shape.num_kv_heads;
  args.dim = shape.head_dim;
  args.rope_parts = shape.rope_parts;
  args.query_scale = shape.query_scale;
  args.eps = eps;
  args.v_norm = v_norm;
  args.kv_format = shape.kv_format;
  const Grid grid = {size_of(places.size()), (q ? shape.num_heads : 0) + (k ? shape.num_kv_heads : 0)};
  launch(Kernel::rope_and_store, grid, 128, (40 + shape.head_dim) * 4, &args);
}

void CudaBackend::attention(const AttentionShape& shape, std::span<const AttentionSegment> segments, const float* q,
                            float* out) {
  std::vector<AttentionRow> rows;
  std::vector<AttentionBlock> blocks;
  int64_t most_pieces = 1, most_rows = 0, tokens_read = 0;
  for (const AttentionSegment& segment : segments) {
    const int64_t first = size_of(blocks.size()), last = segment.position + segment.rows;
    for (const KvBlock& block : segment.kv.blocks) {
      blocks.push_back({block.head(segment.kv.first_head), block.stride});
    }
    auto span = segment.spans.begin();
    for (int64_t i = 0; i < segment.rows; ++i) {
      const int64_t position = segment.position + i;
      while (span != segment.spans.end() && span->end <= position) ++span;
      const int64_t begin = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
      int64_t end = position + 1;
      if (span != segment.spans.end() && span->begin <= position) {
        end = span->end;
      } else if (shape.bidirectional) {
        end = shape.window > 0 ? std::min(last, position + shape.window) : last;
      }
      rows.push_back({begin, end, first, segment.kv.first_block, segment.row + i});
      most_pieces = std::max(most_pieces, quotient(end, kPieceTokens) - begin / kPieceTokens);
      tokens_read += end - begin;
    }
    most_rows = std::max(most_rows, segment.rows);
  }
  const int64_t count = size_of(rows.size()), dim = shape.head_dim;
  bytes_read_.fetch_add(tokens_read * shape.num_kv_heads * kv_head_bytes(dim, shape.kv_format) / kKvBlockTokens,
                        std::memory_order_relaxed);
  AttentionArgs args = {};
  args.rows = gpu().parameters.put(std::span<const AttentionRow>(rows));
  args.blocks = gpu().parameters.put(std::span<const AttentionBlock>(blocks));
  args.q = q;
  args.out = out;
  args.heads = shape.num_heads;
  args.kv_heads = shape.num_kv_heads;
  args.dim = dim;
  args.softcap = shape.softcap;
  const int64_t partial_bytes = count * shape.num_heads * most_pieces * (dim + 2) * 4;
  const bool split = most_rows <= kSplitRows && most_pieces > 1 && partial_bytes <= kMostPartialBytes;
  args.splits = split ? most_pieces : 1;
  args.pieces_each = split ? 1 : most_pieces;
  if (split) args.partials = reinterpret_cast<float*>(scratch(partials_, static_cast<size_t>(partial_bytes)));
  const int64_t warps = std::min<int64_t>(shape.num_heads / shape.num_kv_heads, 8);
  launch(attention_kernel(shape.kv_format, dim), {count, shape.num_kv_heads, args.splits}, static_cast<int>(32 * warps),
         warps * kv_padded(dim, bits_of(shape.kv_format) / 8) * 4, &args);
  if (split) {
    const MergeArgs merge = {args.rows, args.partials, out, shape.num_heads, dim, args.splits};
    launch(Kernel::attention_merge, {count, shape.num_heads}, 32, 0, &merge);
  }
}

}  // namespace cuda

void check_cuda() {
  const std::string refusal = cuda::find_driver().refusal;
  if (!refusal.empty()) fail(ErrorCode::kUnsupported, "device is 'cuda', but ", refusal, "; use device='cpu'");
}

CudaInfo cuda_info() {
  const cuda::Driver driver = cuda::find_driver();
  CudaInfo info;
  info.refusal = driver.refusal;
  info.version = driver.version;
  for (const cuda::Gpu& gpu : driver.gpus) {
    info.gpus.push_back({gpu.name, gpu.capability, gpu.memory, gpu.refusal});
  }
  return info;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<cuda::CudaBackend>(options);
}

}  // namespace gemlet
