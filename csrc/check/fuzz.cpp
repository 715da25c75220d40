// libFuzzer's entry: any bytes as what a file may hold. Rows of every stored type are decoded, packed and repacked; a
// table is read by row from a file; a small model gets its weights from bytes that nobody vouches for and runs. Only
// Error may come out. Built with GEMLET_FUZZ (clang): gemlet_fuzz -runs=1000000
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "base/error.h"
#include "engine/sequence.h"
#include "formats/quantize.h"
#include "formats/repack.h"
#include "formats/row_table.h"
#include "model/builder.h"

namespace gemlet::check {
namespace {

// The bytes of one input, taken from the front; zeros when they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : rest_(data, size) {}
  uint64_t number(size_t bytes) {
    uint64_t value = 0;
    take(bytes, &value);
    return value;
  }
  int64_t below(int64_t limit) { return static_cast<int64_t>(number(4) % static_cast<uint64_t>(limit)); }
  // Sizes as a file would say them: mostly small, sometimes anything.
  int64_t size() { return number(1) < 250 ? below(300) : static_cast<int64_t>(number(8)); }
  void take(size_t count, void* out) {
    const size_t have = std::min(count, rest_.size());
    if (have) std::memcpy(out, rest_.data(), have);
    rest_ = rest_.subspan(have);
  }
  std::span<const uint8_t> rest() const { return rest_; }

 private:
  std::span<const uint8_t> rest_;
};

constexpr std::array kTypes = {
#define GEMLET_TYPE(id, name, values, bytes) SourceType::k##id,
    GEMLET_SOURCE_TYPES(GEMLET_TYPE)
#undef GEMLET_TYPE
};
constexpr std::array kFormats = {
#define GEMLET_FORMAT(id, name) Format::k##id,
    GEMLET_FORMATS(GEMLET_FORMAT)
#undef GEMLET_FORMAT
};
constexpr std::array kCaches = {KvFormat::kF32, KvFormat::kBf16, KvFormat::kInt8};

// A file in memory with the rest of the input repeated up to `size`.
int file_of(std::span<const uint8_t> content, size_t size) {
  const int descriptor = memfd_create("fuzz", 0);
  std::vector<uint8_t> data(size);
  for (size_t i = 0; i < size && !content.empty(); ++i) data[i] = content[i % content.size()];
  if (write(descriptor, data.data(), size) != static_cast<ssize_t>(size)) __builtin_trap();
  return descriptor;
}

void pack_rows(Bytes in) {
  const SourceType type = kTypes[static_cast<size_t>(in.below(kTypes.size()))];
  const Format format = kFormats[static_cast<size_t>(in.below(kFormats.size()))];
  const int64_t block = source_block_values(type);
  const int64_t rows = 1 + in.below(16), cols = block * (1 + in.below(block > 1 ? 4 : 200));
  std::vector<uint8_t> source(static_cast<size_t>(source_bytes(type, rows * cols)));
  in.take(source.size(), source.data());
  std::vector<float> values(static_cast<size_t>(rows * cols));
  widen(source.data(), type, 0, rows * cols, values.data());
  AlignedBuffer panel(static_cast<size_t>(panel_bytes(format, cols)));
  const Matrix matrix = {format, rows, cols, panel.data()};
  pack_panel(format, values.data(), rows, cols, panel.data());
  for (int64_t row = 0; row < rows; ++row) unpack_row(matrix, row, values.data());
  if (can_repack(format, type)) repack_panel(format, type, source.data(), rows, cols, panel.data());
}

void read_table(Bytes in) {
  const SourceType type = kTypes[static_cast<size_t>(in.below(kTypes.size()))];
  const int64_t offset = in.size(), rows = in.size(), cols = in.size();
  std::vector<RowTable::Columns> kept(static_cast<size_t>(in.below(3)));
  for (RowTable::Columns& columns : kept) columns = {in.size(), in.size()};
  const int descriptor = file_of(in.rest(), static_cast<size_t>(in.below(20000)));
  const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  try {
    const RowTable table(path, offset, rows, cols, type, kept);
    std::vector<float> row(static_cast<size_t>(table.cols()));
    table.read(in.below(table.rows()), row.data());
  } catch (const Error&) {
  }
  close(descriptor);
}

ModelConfig config_of(Bytes& in) {
  ModelConfig config;
  config.vocab_size = 33;
  config.hidden_size = 24;
  config.max_context = 200;
  config.rms_norm_eps = 1e-6;
  config.embedding_scale = 4.9;
  config.final_softcap = in.below(2) ? 30 : 0;
  config.norm_offset = 1;
  for (int i = 0; i < 2; ++i) {
    LayerConfig layer;
    layer.num_heads = 2;
    layer.num_kv_heads = 1;
    layer.head_dim = 10;
    layer.intermediate_size = 40;
    layer.query_scale = 0.3;
    layer.rope_theta = 10000;
    layer.sliding_window = i == 0 ? 7 : 0;
    layer.attention_softcap = in.below(2) ? 50 : 0;
    layer.qk_norm = in.below(2);
    layer.post_norms = true;
    if (in.below(4) == 0) layer.activation_sparsity = 1.6;
    config.layers.push_back(layer);
  }
  return config;
}

// Weights row by row in any stored type, or packed ones from a mapped file, and then a prompt and a decode step.
void run_model(Bytes in) {
  const auto format = [&] { return kFormats[static_cast<size_t>(in.below(kFormats.size()))]; };
  const ModelConfig config = config_of(in);
  const bool packed = in.below(2);
  const KvFormat cache = kCaches[static_cast<size_t>(in.below(kCaches.size()))];
  ModelBuilder builder(config, format(), format(), cache, make_cpu_backend(1, 1), !packed);
  int descriptor = -1;
  try {
    if (packed) {
      descriptor = file_of(in.rest(), 1 << 16);
      builder.map_file(descriptor, "fuzz");
    }
    for (const auto& [name, slot] : builder.slots()) {
      if (packed) {
        const bool honest = in.number(1) < 250;
        const int64_t bytes = slot.packed_bytes(slot.rows());
        builder.use_packed(name, honest ? in.below(64) * 64 : in.size(), honest ? bytes : in.size());
        continue;
      }
      const SourceType type = in.number(1) < 200 ? SourceType::kF32 : kTypes[static_cast<size_t>(in.below(3))];
      std::vector<int64_t> shape = slot.shape;
      if (in.number(1) > 250) shape[static_cast<size_t>(in.below(static_cast<int64_t>(shape.size())))] = in.size();
      if (shape == slot.shape) {
        std::vector<uint8_t> data(static_cast<size_t>(source_bytes(type, slot.values())));
        in.take(data.size(), data.data());
        builder.add(name, {shape, type, data.data()});
      } else {
        const uint8_t few[64] = {};
        builder.add(name, {shape, type, few});  // refused before a value is read
      }
    }
    Sequence sequence(std::shared_ptr<Model>(builder.finish()));
    const std::array<int32_t, 20> ids = {2, 3, 5, 32, 0, 7, 9};
    sequence.extend(std::span(ids).first(9 + static_cast<size_t>(in.below(11))), LogitsWanted::kAll);
    sequence.extend(std::span(ids).first(1), LogitsWanted::kLast);
    Sampler sampler({});
    sequence.sample(sampler);
  } catch (const Error&) {
  }
  if (descriptor >= 0) close(descriptor);
}

}  // namespace
}  // namespace gemlet::check

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gemlet::check::Bytes in(data, size);
  switch (in.number(1) % 8) {
    case 0:
      gemlet::check::run_model(in);
      break;
    case 1:
      gemlet::check::read_table(in);
      break;
    default:
      gemlet::check::pack_rows(in);
  }
  return 0;
}
