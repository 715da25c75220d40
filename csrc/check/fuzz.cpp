// The entry point for libFuzzer: any bytes as the contents of a file. Rows of every stored type are decoded, packed and
// repacked, from memory and from a file. A table is read by row. The bytes are mapped weights and adapters, with which
// small models of all families run, in the scalar tier, AVX2 and the machine's highest tier. Only Error may be thrown,
// and never for lack of memory: no size in an input justifies more than kMemory.
//
//   cmake -S . -B FOLDER -DCMAKE_CXX_COMPILER=clang++ -DGEMLET_PYTHON=OFF -DGEMLET_FUZZ=ON -DGEMLET_SANITIZE=ON
//   cmake --build FOLDER
//   FOLDER/csrc/gemlet_fuzz --target=NAME -runs=1000000 -timeout=900 -rss_limit_mb=1024 -malloc_limit_mb=64 CORPUS
//
// NAME is one of kTargets. Without it, the first byte of an input selects the target; models are slow, so they take
// most of the time. The state that all inputs share is made once, before the first input. An input that takes kSeconds
// of processor time aborts the program. libFuzzer's own limit is on elapsed time, which is longer on a busy machine.
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <span>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "engine/sequence.h"
#include "formats/quantize.h"
#include "formats/repack.h"
#include "formats/row_table.h"
#include "formats/source_rows.h"
#include "model/adapter_builder.h"
#include "model/builder.h"

namespace gemlet::check {
namespace {

constexpr size_t kMemory = size_t{512} << 20;  // beyond what the process has taken before the first input
constexpr int kSeconds = 5;

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
constexpr std::array kCaches = {KvFormat::kF32, KvFormat::kBf16, KvFormat::kInt8, KvFormat::kInt4};

// The bytes of one input. Numbers are taken from the front, and are zero when no bytes are left.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : rest_(data, size) {}
  uint64_t number(size_t bytes) {
    uint64_t value = 0;
    const size_t have = std::min(bytes, rest_.size());
    if (have) std::memcpy(&value, rest_.data(), have);
    rest_ = rest_.subspan(have);
    return value;
  }
  int64_t below(int64_t limit) {
    return static_cast<int64_t>(number(limit > 256 ? 2 : 1) % static_cast<uint64_t>(limit));
  }
  bool one_in(int64_t chances) { return below(chances) == chances - 1; }
  // A size as a file would name it: mostly small, sometimes any number.
  int64_t size() { return number(1) < 250 ? below(300) : static_cast<int64_t>(number(8)); }
  template <typename T>
  const T& of(std::span<const T> choices) {
    return choices[static_cast<size_t>(below(static_cast<int64_t>(choices.size())))];
  }
  SourceType type() { return of(std::span<const SourceType>(kTypes)); }
  Format format() { return of(std::span<const Format>(kFormats)); }

  // Fills the memory with the bytes that are left, repeated. Takes none of them.
  void fill(uint8_t* out, size_t count) const {
    size_t have = std::min(count, rest_.size());
    if (have == 0) return std::fill_n(out, count, uint8_t{0}), void();
    std::memcpy(out, rest_.data(), have);
    for (; have < count; have *= 2) std::memcpy(out + have, out, std::min(have, count - have));
  }
  // The copy is on the heap and exactly that long, so that the sanitizer detects reads past the end.
  std::vector<uint8_t> data(int64_t count) const {
    std::vector<uint8_t> out(static_cast<size_t>(count));
    fill(out.data(), out.size());
    return out;
  }

 private:
  std::span<const uint8_t> rest_;
};

// A file in memory. Every input overwrites it.
class InputFile {
 public:
  explicit InputFile(size_t size) : descriptor_(memfd_create("fuzz", 0)), size_(size) {
    if (ftruncate(descriptor_, static_cast<off_t>(size)) != 0) __builtin_trap();
    void* const memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
    if (memory == MAP_FAILED) __builtin_trap();
    data_ = static_cast<uint8_t*>(memory);
  }
  void fill(const Bytes& in) { in.fill(data_, size_); }
  int descriptor() const { return descriptor_; }
  size_t size() const { return size_; }

 private:
  int descriptor_;
  size_t size_;
  uint8_t* data_;
};

enum class Family { kGemma2, kGemma3n, kGemma4 };
constexpr std::array kFamilies = {Family::kGemma2, Family::kGemma3n, Family::kGemma4};
constexpr int64_t kVocab = 33, kPerLayer = 8;

// Returns the configuration of a model that is as small as possible. No size is a multiple of a panel or a block.
ModelConfig config_of(Family family) {
  ModelConfig config;
  config.vocab_size = kVocab;
  config.hidden_size = 24;
  config.max_context = 200;
  config.rms_norm_eps = 1e-6;
  config.embedding_scale = 4.9;
  config.final_softcap = family == Family::kGemma3n ? 0 : 30;
  config.norm_offset = family == Family::kGemma2 ? 1 : 0;
  if (family != Family::kGemma2) {
    config.per_layer_input_size = kPerLayer;
    config.per_layer_vocab_size = kVocab - 2;
  }
  if (family == Family::kGemma3n) {
    config.altup_streams = 2;
    config.laurel_rank = 5;
  }
  for (int i = 0; i < 2; ++i) {
    LayerConfig layer;
    layer.num_heads = 2;
    layer.num_kv_heads = 1;
    layer.head_dim = 10;
    layer.intermediate_size = 40;
    layer.query_scale = 0.3;
    layer.rope_theta = 10000;
    layer.sliding_window = i == 0 || family == Family::kGemma3n ? 7 : 0;
    layer.attention_softcap = family == Family::kGemma2 ? 50 : 0;
    layer.qk_norm = family != Family::kGemma2;
    layer.post_norms = true;
    if (family == Family::kGemma3n) {
      layer.kv_source = i - 1;
      if (i == 0) layer.activation_sparsity = 1.6;
    }
    if (family == Family::kGemma4) {
      layer.v_norm = layer.layer_scalar = true;
      layer.key_is_value = i == 1;
      layer.rope_partial_factor = i == 1 ? 0.5 : 1;
      layer.num_experts = i == 1 ? 3 : 0;
      layer.experts_per_token = 2;
      layer.expert_intermediate_size = 18;
    }
    config.layers.push_back(layer);
  }
  return config;
}

struct Slot {
  std::string name;
  std::vector<int64_t> shape;
  bool matrix;
  int64_t rows, values, bytes;  // bytes: packed
};

struct Kept {  // one for each format; the builder is used to pack only
  std::unique_ptr<ModelBuilder> builder;
  std::vector<Slot> slots;
};

// The state that all inputs share.
struct State {
  InputFile weights{16 << 10}, table{5000};
  std::vector<Tier> tiers;
  std::vector<Kept> packers;
  std::vector<std::shared_ptr<Model>>
      models;  // one for each tier, family, format and cache; they map the file of weights

  State() {
    const std::vector<Tier> all = supported_tiers(detect_cpu());
    for (const Tier tier : all) {
      if (tier == Tier::kScalar || tier == Tier::kAvx2 || tier == all.back()) tiers.push_back(tier);
    }
    for (const Format format : kFormats) {
      Kept kept = {builder(Family::kGemma4, format, KvFormat::kBf16, all.back()), {}};
      for (const auto& [name, slot] : kept.builder->slots()) {
        kept.slots.push_back(
            {name, slot.shape, slot.matrix != nullptr, slot.rows(), slot.values(), slot.packed_bytes(slot.rows())});
      }
      packers.push_back(std::move(kept));
    }
    for (const Tier tier : tiers) {
      for (const Family family : kFamilies) {
        for (const Format format : kFormats) {
          for (const KvFormat cache : kCaches) models.push_back(model(family, format, cache, tier));
        }
      }
    }
  }

  // Mostly the machine's highest tier, which users have; seldom the scalar tier, which is slow.
  const std::shared_ptr<Model>& model_for(Bytes& in) const {
    const size_t tier = std::min<size_t>(tiers.size() - 1, static_cast<size_t>((in.below(8) + 2) / 3));
    const size_t count = models.size() / tiers.size();
    return models[tier * count + static_cast<size_t>(in.below(static_cast<int64_t>(count)))];
  }

  std::unique_ptr<ModelBuilder> builder(Family family, Format format, KvFormat cache, Tier tier) {
    return std::make_unique<ModelBuilder>(config_of(family), format, format, cache,
                                          std::make_unique<CpuBackend>(tier, 1, 1), BuildMode::kFiles);
  }

  RowTable per_layer_table() const {
    return RowTable(table.descriptor(), "fuzz", 0, kVocab - 2, kPerLayer * 2, SourceType::kF32);
  }

  // The model's weights overlap in the file, so that every input fills all of them.
  std::shared_ptr<Model> model(Family family, Format format, KvFormat cache, Tier tier) {
    const std::unique_ptr<ModelBuilder> made = builder(family, format, cache, tier);
    made->map_file(weights.descriptor(), "fuzz");
    int64_t offset = 0;
    for (const auto& [name, slot] : made->slots()) {
      made->use_packed(name, offset, slot.packed_bytes(slot.rows()));
      offset = (offset + 64) % 4096;
    }
    if (made->needs_per_layer_table()) made->set_per_layer_table(per_layer_table());
    return made->finish();
  }
};

State& state() {
  static State made;
  return made;
}

// Catches Error. These inputs may not cause a lack of memory.
template <typename Fn>
void expect_errors(const Fn& fn) {
  try {
    fn();
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kMemory) __builtin_trap();
  }
}

void run(const std::shared_ptr<Model>& model, Bytes in, const std::shared_ptr<const Adapter>& adapter = nullptr) {
  constexpr std::array<int32_t, 20> kIds = {2, 3, 5, 32, 0, 7, 9, 31};
  const size_t prompt = static_cast<size_t>(in.one_in(8) ? 9 + in.below(12) : 1 + in.below(3));
  Sequence sequence(model, adapter);
  sequence.extend({std::span(kIds).first(prompt)}, LogitsWanted::kAll);
  sequence.extend({std::span(kIds).last(1)}, LogitsWanted::kLast);
  SamplerConfig config;
  config.temperature = in.one_in(4) ? 0.7 : 0;
  config.top_k = in.below(4);
  Sampler sampler(config);
  const int32_t id = sequence.sample(sampler);
  if (id < 0 || id >= kVocab) __builtin_trap();
}

void decode_rows(Bytes in) {
  const SourceType type = in.type();
  const Format format = in.format();
  const int64_t block = source_block_values(type);
  const int64_t rows = 1 + in.below(block > 32 ? 3 : 16), cols = block * (1 + in.below(block > 1 ? 3 : 80));
  const std::vector<uint8_t> source = in.data(source_bytes(type, rows * cols));
  std::vector<float> values(static_cast<size_t>(rows * cols));
  widen(source.data(), type, 0, rows * cols, values.data());
  std::vector<uint8_t> panel(static_cast<size_t>(panel_bytes(format, cols)));
  const Matrix matrix = {format, rows, cols, panel.data()};
  pack_panel(format, values.data(), rows, cols, panel.data());
  for (int64_t row = 0; row < rows; ++row) unpack_row(matrix, row, values.data());
  const std::vector<float> scales(static_cast<size_t>(rows * (1 + cols / kBlock)), in.one_in(8) ? 1e-9f : 0.25f);
  const int64_t per_row = type == SourceType::kI4x32 ? cols / kBlock : 1;
  const SourceScales own = has_own_scales(type) ? SourceScales{scales.data(), rows, per_row} : SourceScales{};
  if (can_repack(format, type, own)) repack_panel(format, type, source.data(), rows, cols, panel.data(), own);
}

// Packs rows of a tensor, which have the right shape or any other shape, from memory or from any place in a file.
void pack_rows(Bytes in) {
  State& all = state();
  Kept& kept = all.packers[static_cast<size_t>(in.below(static_cast<int64_t>(all.packers.size())))];
  const Slot& slot = kept.slots[static_cast<size_t>(in.below(static_cast<int64_t>(kept.slots.size())))];
  std::vector<int64_t> shape = slot.shape;
  if (in.one_in(4)) shape[static_cast<size_t>(in.below(static_cast<int64_t>(shape.size())))] = in.size();
  if (in.one_in(16)) shape.resize(static_cast<size_t>(in.below(4)), 1);
  SourceRows source = {shape, in.one_in(4) ? in.type() : kTypes[static_cast<size_t>(in.below(3))]};
  if (has_own_scales(source.type) && !in.one_in(8)) {
    const int64_t count = shape.empty() ? 1 : std::clamp<int64_t>(shape[0], 0, 4096) * (1 + in.below(3));
    source.scales.resize(static_cast<size_t>(count), in.one_in(8) ? std::nanf("") : 0.01f);
  }
  const int64_t first_row = in.one_in(4) ? in.size() : 0;
  const bool file = in.one_in(2);
  const std::string name = in.one_in(64) ? "no such" : slot.name;
  if (file) {
    source.descriptor = all.table.descriptor();
    source.offset = in.one_in(4) ? in.size() : 0;
    all.table.fill(in);
  }
  int64_t values = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(values, size, &values)) values = 0;
  }
  if (values > 1 << 14) values = 0;  // more than any slot holds
  const std::vector<uint8_t> data = in.data(file ? 0 : source_bytes(source.type, values));
  if (!file) source.data = data.data();
  // The buffer has as many bytes as the bindings provide.
  std::vector<uint8_t> out(
      static_cast<size_t>(kept.builder->packed_bytes(name, slot.matrix && !shape.empty() ? shape[0] : 1)));
  expect_errors([&] { kept.builder->pack(name, source, first_row, out.data()); });
}

void read_table(Bytes in) {
  const SourceType type = in.type();
  const int64_t offset = in.size(), rows = in.size(), cols = in.size();
  std::vector<RowTable::Columns> kept(static_cast<size_t>(in.below(3)));
  for (RowTable::Columns& columns : kept) columns = {in.size(), in.size()};
  InputFile& file = state().table;
  const int64_t row = in.one_in(4) ? in.size() : 0;
  file.fill(in);
  expect_errors([&] {
    const RowTable table(file.descriptor(), "fuzz", offset, rows, cols, type, kept);
    std::vector<float> values(static_cast<size_t>(table.cols()));
    table.read(row < 0 ? row : row % (table.rows() + 1), values.data());
  });
}

void run_model(Bytes in) {
  State& all = state();
  const std::shared_ptr<Model>& model = all.model_for(in);
  all.weights.fill(in);
  all.table.fill(in);
  expect_errors([&] { run(model, in); });
}

void add_adapter(Bytes in) {
  State& all = state();
  const std::shared_ptr<Model>& model = all.model_for(in);
  constexpr std::array kNames = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "x", ""};
  all.weights.fill(in);
  all.table.fill(in);
  AdapterBuilder builder(model);
  for (int64_t count = 1 + in.below(3); count > 0; --count) {
    const int64_t name = in.below(static_cast<int64_t>(kNames.size())), rank = 1 + in.below(20);
    std::vector<int64_t> a = {rank, name == 3 ? 20 : name == 6 ? 40 : 24};
    std::vector<int64_t> b = {name == 0 ? 20 : name < 3 ? 10 : name == 4 || name == 5 ? 40 : 24, rank};
    for (std::vector<int64_t>* shape : {&a, &b}) {
      if (in.one_in(16)) (*shape)[static_cast<size_t>(in.below(2))] = in.below(100);
    }
    const SourceType type = kTypes[static_cast<size_t>(in.below(3))];
    const std::string layer = in.one_in(16) ? std::to_string(in.size()) : std::to_string(in.below(2));
    const float scale = in.one_in(4) ? std::bit_cast<float>(static_cast<uint32_t>(in.number(4))) : 2.0f;
    const std::vector<uint8_t> data_a = in.data(source_bytes(type, a[0] * a[1]));
    const std::vector<uint8_t> data_b = in.data(source_bytes(type, b[0] * b[1]));
    std::vector<float> magnitudes;
    if (in.one_in(4)) magnitudes.assign(static_cast<size_t>(in.one_in(8) ? in.below(100) : b[0]), 0.5f);
    expect_errors([&] {
      builder.add("layers." + layer + "." + kNames[static_cast<size_t>(name)], {a, type, data_a.data()},
                  {b, type, data_b.data()}, scale, magnitudes);
    });
  }
  if (in.one_in(2)) {
    std::vector<int32_t> ids(static_cast<size_t>(in.one_in(2) ? in.below(8) : 0));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(in.one_in(16) ? in.size() : 3 * i);
    const int64_t rows = in.one_in(16) ? in.below(100) : ids.empty() ? kVocab : static_cast<int64_t>(ids.size());
    const SourceType type = kTypes[static_cast<size_t>(in.below(3))];
    const std::vector<uint8_t> data = in.data(source_bytes(type, rows * 24));
    const char* const slot = in.one_in(2) ? "lm_head" : "embed_tokens";
    expect_errors([&] { builder.add_rows(slot, {{rows, 24}, type, data.data()}, ids); });
    if (in.one_in(4)) expect_errors([&] { builder.share_rows(); });
  }
  expect_errors([&] { run(model, in, builder.finish()); });
}

// Builds a model slot by slot, from packed weights in the file or from rows.
void build_model(Bytes in) {
  State& all = state();
  const Family family = in.of(std::span<const Family>(kFamilies));
  const bool packed = in.below(2);
  const Format format = in.format();
  expect_errors([&] {
    ModelBuilder builder(config_of(family), format, in.format(), in.of(std::span<const KvFormat>(kCaches)),
                         std::make_unique<CpuBackend>(all.tiers.back(), 1, 1),
                         packed ? BuildMode::kFiles : BuildMode::kAllocate);
    if (packed) builder.map_file(all.weights.descriptor(), "fuzz");
    for (const auto& [name, slot] : builder.slots()) {
      if (in.one_in(128)) continue;
      if (slot.is_balance && !packed && !in.one_in(16)) continue;  // most come too late, or with wrong numbers
      if (packed) {
        const bool honest = !in.one_in(32);
        const int64_t bytes = slot.packed_bytes(slot.rows());
        builder.use_packed(name, honest ? in.below(64) * 64 : in.size(), honest ? bytes : in.size());
        continue;
      }
      const SourceType type = in.one_in(4) ? kTypes[static_cast<size_t>(in.below(3))] : SourceType::kF32;
      const std::vector<uint8_t> data = in.data(source_bytes(type, slot.values()));
      const int64_t part = slot.matrix && slot.rows() > kPanelRows && in.one_in(4) ? kPanelRows : 0;
      std::vector<int64_t> shape = slot.shape;
      if (part) {
        shape[0] = part;
        builder.add(name, {shape, type, data.data()});
        shape[0] = slot.rows() - part;
      }
      builder.add(name, {shape, type, data.data()}, part);
    }
    if (builder.needs_per_layer_table()) builder.set_per_layer_table(all.per_layer_table());
    all.weights.fill(in);
    all.table.fill(in);
    run(std::shared_ptr<Model>(builder.finish()), in);
  });
}

struct Target {
  std::string_view name;
  void (*run)(Bytes in);
};
constexpr std::array kTargets = {
    Target{"rows", decode_rows}, Target{"pack", pack_rows},      Target{"table", read_table},
    Target{"model", run_model},  Target{"adapter", add_adapter}, Target{"build", build_model},
};
const Target* only = nullptr;

std::atomic<uint64_t> inputs;

// The handler of a timer signal, which comes after every second of processor time.
void look_for_hang(int) {
  static uint64_t seen = 0;
  static int seconds = 0;
  const uint64_t now = inputs.load(std::memory_order_relaxed);
  seconds = now == seen ? seconds + 1 : 0;
  seen = now;
  if (seconds == kSeconds) std::abort();
}

void limit_memory() {
  long pages = 0;
  FILE* const statm = std::fopen("/proc/self/statm", "r");
  if (!statm || std::fscanf(statm, "%ld", &pages) != 1) __builtin_trap();
  std::fclose(statm);
  const rlimit limit = {static_cast<rlim_t>(pages) * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + kMemory,
                        RLIM_INFINITY};
  if (setrlimit(RLIMIT_AS, &limit) != 0) __builtin_trap();
}

}  // namespace
}  // namespace gemlet::check

extern "C" int LLVMFuzzerInitialize(int* count, char*** arguments) {
  using namespace gemlet::check;
  constexpr std::string_view kFlag = "--target=";
  for (int i = 1; i < *count; ++i) {
    const std::string_view argument = (*arguments)[i];
    if (!argument.starts_with(kFlag)) continue;
    for (const Target& target : kTargets) {
      if (argument.substr(kFlag.size()) == target.name) only = &target;
    }
    if (!only) __builtin_trap();
  }
  state();
  limit_memory();
  std::signal(SIGPROF, look_for_hang);
  const itimerval second = {{1, 0}, {1, 0}};
  return setitimer(ITIMER_PROF, &second, nullptr);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gemlet::check;
  inputs.fetch_add(1, std::memory_order_relaxed);
  Bytes in(data, size);
  const Target& target = kTargets[in.number(1) % kTargets.size()];
  (only ? only : &target)->run(in);
  return 0;
}
