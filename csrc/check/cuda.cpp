// gemlet_check_cuda: compares the operations of the CUDA backend with their definitions in float64. In a build with
// GEMLET_CUDA=emulated no GPU is needed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>

#include "backend/backend.h"
#include "check/check.h"
#include "formats/quantize.h"

namespace gemlet::check {
namespace {

// The checks require |got - expected| <= bound * size, where size is the sum of the magnitudes that were added.
constexpr double kFloat = 2e-6;       // float32 arithmetic
constexpr double kTiles = 2.0 / 256;  // activations and weights rounded to bf16
constexpr double kAttention = 2e-5;

std::vector<float> numbers(Random& random, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

// Allocates memory of the backend and copies these numbers into it.
DeviceMemory on_device(Backend& backend, const void* host, size_t bytes) {
  DeviceMemory memory = backend.allocate(std::max<size_t>(bytes, 1));
  backend.upload(host, bytes, memory.data());
  return memory;
}
DeviceMemory on_device(Backend& backend, const std::vector<float>& values) {
  return on_device(backend, values.data(), values.size() * sizeof(float));
}
std::vector<float> on_host(Backend& backend, DeviceMemory& memory, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  backend.download(memory.data(), values.size() * sizeof(float), values.data());
  return values;
}

void expect_near(double got, double expected, double bound, const char* what) {
  if (!(std::abs(got - expected) <= bound)) {
    failed(std::string(what) + ": got " + std::to_string(got) + ", expected " + std::to_string(expected) + " within " +
           std::to_string(bound));
  }
}

void check_matmul_of(Backend& backend, Format format, bool exact) {
  if (!backend.multiplies({format, 1, 1, nullptr})) return;  // models with this format are refused
  Random random(7);
  const int64_t shapes[][2] = {{16, 64}, {20, 70}, {80, 256}, {37, 131}, {130, 320}};
  for (const auto& [outputs, cols] : shapes) {
    const std::vector<float> w = numbers(random, outputs * cols);
    std::vector<uint8_t> packed(static_cast<size_t>(packed_bytes(format, outputs, cols)));
    const Matrix host = {format, outputs, cols, packed.data()};
    for (int64_t panel = 0; panel < host.panels(); ++panel) {
      const int64_t rows = std::min(kPanelRows, outputs - panel * kPanelRows);
      if (!pack_panel(format, w.data() + panel * kPanelRows * cols, rows, cols,
                      packed.data() + panel * panel_bytes(format, cols))) {
        failed("weights cannot be packed");
      }
    }
    DeviceMemory weights = on_device(backend, packed.data(), packed.size());
    const Matrix matrix = {format, outputs, cols, weights.data()};
    std::vector<std::vector<float>> rows_of;
    for (int64_t o = 0; o < outputs; ++o) {
      rows_of.emplace_back(static_cast<size_t>(cols));
      unpack_row(host, o, rows_of.back().data());
    }
    for (const int64_t rows : {1, 2, 3, 8, 9, 70}) {
      begin_case("cuda matmul", Tier::kScalar,
                 std::string(format_name(format)) + " " + shape_text("rows", rows, "outputs", outputs, "cols", cols));
      const std::vector<float> x = numbers(random, rows * cols);
      DeviceMemory input = on_device(backend, x), out = backend.allocate(static_cast<size_t>(rows * outputs * 4));
      const Product product = {input.as<const float>(), rows, &matrix, out.as<float>()};
      backend.matmul({&product, 1});
      const std::vector<float> got = on_host(backend, out, rows * outputs);
      const bool tiles =
          rows > 8 && !exact && format != Format::kF32 && format != Format::kBf12 && row_bits(format) == 0;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t o = 0; o < outputs; ++o) {
          double sum = 0, size = 0;
          for (int64_t c = 0; c < cols; ++c) {
            const double term = static_cast<double>(x[static_cast<size_t>(r * cols + c)]) *
                                static_cast<double>(rows_of[static_cast<size_t>(o)][static_cast<size_t>(c)]);
            sum += term;
            size += std::abs(term);
          }
          expect_near(static_cast<double>(got[static_cast<size_t>(r * outputs + o)]), sum,
                      (tiles ? kTiles : kFloat) * size, "a product");
        }
      }
    }
    begin_case("cuda embed", Tier::kScalar, std::string(format_name(format)));
    const std::vector<int32_t> ids = {0, static_cast<int32_t>(outputs - 1), 3};
    DeviceMemory out = backend.allocate(ids.size() * static_cast<size_t>(cols) * 4);
    backend.embed(matrix, ids, 1.0f, out.as<float>());
    const std::vector<float> got = on_host(backend, out, static_cast<int64_t>(ids.size()) * cols);
    for (size_t i = 0; i < ids.size(); ++i) {
      expect_same_bits(got.data() + static_cast<int64_t>(i) * cols, rows_of[static_cast<size_t>(ids[i])].data(), cols,
                       "a row of the table");
    }
  }
}

struct AttentionCase {
  KvFormat format;
  int64_t heads, kv_heads, dim, window, context, rows;
  float softcap;
  bool bidirectional;
  std::vector<TokenSpan> spans;
};

// Rounds a key or a value in the same way as the cache.
void round_as(KvFormat format, float* x, int64_t dim) {
  if (format == KvFormat::kBf16) {
    for (int64_t i = 0; i < dim; ++i) {
      uint32_t bits = __builtin_bit_cast(uint32_t, x[i]);
      bits = (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
      x[i] = __builtin_bit_cast(float, bits);
    }
  } else if (format == KvFormat::kInt8) {
    float peak = 0;
    for (int64_t i = 0; i < dim; ++i) peak = std::max(peak, std::abs(x[i]));
    for (int64_t i = 0; i < dim; ++i) x[i] = std::nearbyint(x[i] * (127.0f / peak)) * (peak / 127.0f);
  }
}

void check_attention_of(Backend& backend, const AttentionCase& c) {
  begin_case("cuda attention", Tier::kScalar,
             std::string(kv_format_name(c.format)) + " " +
                 shape_text("heads", c.heads, "kv heads", c.kv_heads, "dim", c.dim, "window", c.window, "context",
                            c.context, "rows", c.rows));
  Random random(static_cast<uint64_t>(c.context + c.dim));
  const int64_t all = c.context + c.rows, blocks = (all + kKvBlockTokens - 1) / kKvBlockTokens;
  const int64_t head_bytes = backend.kv_head_bytes(c.dim, c.format), block_bytes = head_bytes * c.kv_heads;
  DeviceMemory cache = backend.allocate(static_cast<size_t>(blocks * block_bytes));
  std::vector<WritableKvBlock> writable;
  std::vector<KvBlock> readable;
  for (int64_t b = 0; b < blocks; ++b) {
    writable.push_back({cache.data() + b * block_bytes, head_bytes});
    readable.push_back({cache.data() + b * block_bytes, head_bytes});
  }
  std::vector<float> k = numbers(random, all * c.kv_heads * c.dim), v = numbers(random, all * c.kv_heads * c.dim);
  const std::vector<float> q = numbers(random, c.rows * c.heads * c.dim);
  DeviceMemory keys = on_device(backend, k), values = on_device(backend, v), queries = on_device(backend, q);
  DeviceMemory out = backend.allocate(q.size() * 4);
  const AttentionShape shape = {c.heads, c.kv_heads, c.dim, c.window, c.bidirectional, c.softcap, 1.0f, c.format};
  // Rotation by nothing: cosine 1, sine 0.
  const std::vector<float> ones(static_cast<size_t>(all * (c.dim / 2)), 1.0f), zeros(ones.size(), 0.0f);
  DeviceMemory cosines = on_device(backend, ones), sines = on_device(backend, zeros);
  const StoreSegment store = {{writable, 0, 0}, 0, all, 0};
  backend.rope_and_store(shape, {&store, 1}, nullptr, keys.as<float>(), values.as<float>(), nullptr, nullptr, false,
                         1e-6f, cosines.as<float>(), sines.as<float>());
  AttentionSegment segment;
  segment.kv = {readable, 0, 0};
  segment.row = 0;
  segment.rows = c.rows;
  segment.position = c.context;
  segment.spans = c.spans;
  backend.attention(shape, {&segment, 1}, queries.as<const float>(), out.as<float>());
  const std::vector<float> got = on_host(backend, out, static_cast<int64_t>(q.size()));

  for (int64_t i = 0; i < all * c.kv_heads; ++i) {
    round_as(c.format, k.data() + i * c.dim, c.dim);
    round_as(c.format, v.data() + i * c.dim, c.dim);
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t position = c.context + r;
    const auto sees = [&](int64_t t) {
      if (c.window > 0 && t <= position - c.window) return false;
      for (const TokenSpan& span : c.spans) {
        if (span.begin <= position && position < span.end) return t < span.end;
      }
      if (c.bidirectional) return c.window == 0 || t < position + c.window;
      return t <= position;
    };
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv_head = h / (c.heads / c.kv_heads);
      std::vector<double> weights(static_cast<size_t>(all), 0.0);
      double largest = -1e300, sum = 0;
      for (int64_t t = 0; t < all; ++t) {
        double score = 0;
        for (int64_t d = 0; d < c.dim; ++d) {
          score += static_cast<double>(q[static_cast<size_t>((r * c.heads + h) * c.dim + d)]) *
                   static_cast<double>(k[static_cast<size_t>((t * c.kv_heads + kv_head) * c.dim + d)]);
        }
        if (c.softcap > 0) score = static_cast<double>(c.softcap) * std::tanh(score / static_cast<double>(c.softcap));
        weights[static_cast<size_t>(t)] = score;
        if (sees(t)) largest = std::max(largest, score);
      }
      for (int64_t t = 0; t < all; ++t) {
        double& weight = weights[static_cast<size_t>(t)];
        weight = sees(t) ? std::exp(weight - largest) : 0.0;
        sum += weight;
      }
      for (int64_t d = 0; d < c.dim; ++d) {
        double expected = 0;
        for (int64_t t = 0; t < all; ++t) {
          expected += weights[static_cast<size_t>(t)] / sum *
                      static_cast<double>(v[static_cast<size_t>((t * c.kv_heads + kv_head) * c.dim + d)]);
        }
        expect_near(static_cast<double>(got[static_cast<size_t>((r * c.heads + h) * c.dim + d)]), expected,
                    kAttention * 4, "attention");
      }
    }
  }
}

void run() {
  for (const bool exact : {false, true}) {
    BackendOptions options;
    options.exact_batches = exact;
    const std::unique_ptr<Backend> backend = make_backend("cuda", options);
#define GEMLET_CHECK_FORMAT(id, name) check_matmul_of(*backend, Format::k##id, exact);
    GEMLET_FORMATS(GEMLET_CHECK_FORMAT)
#undef GEMLET_CHECK_FORMAT
  }
  const std::unique_ptr<Backend> backend = make_backend("cuda", {});
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16, KvFormat::kInt8}) {
    check_attention_of(*backend, {format, 4, 1, 64, 0, 0, 5, 0, false, {}});
    check_attention_of(*backend, {format, 8, 2, 256, 0, 600, 2, 50, false, {}});   // split over the keys
    check_attention_of(*backend, {format, 4, 4, 72, 100, 500, 20, 0, false, {}});  // a window, and no split
    check_attention_of(*backend, {format, 2, 1, 34, 70, 30, 40, 0, false, {{35, 60}}});
    check_attention_of(*backend, {format, 2, 2, 32, 16, 0, 70, 0, true, {}});
    check_attention_of(*backend, {format, 20, 2, 512, 0, 70, 1, 0, false, {}});  // more heads in a group than warps
  }
}

}  // namespace
}  // namespace gemlet::check

int main() {
  try {
    gemlet::check::run();
  } catch (const std::exception& error) {
    std::printf("FAILED %s: %s\n", gemlet::check::current_case(), error.what());
    return 1;
  }
  std::puts("the operations of device 'cuda' are right");
  return 0;
}
