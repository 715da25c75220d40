// Checks attention and its cache. The error bound: a score is a float32 sum of head_dim products; softcap * tanh is
// exact to kExp * softcap; an error d in a score changes its weight e^s by the factor e^d. The weighted sum of the
// values and the sum of the weights are float32 sums over the tokens. With an int8 or int4 cache, queries and weights
// are rounded to multiples of their largest / kSteps. With a bf16 cache, some tiers round them to bf16.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float_bits.h"
#include "check/check.h"
#include "kernels/registry.h"

namespace gemlet::check {
namespace {

using kernels::AttentionArgs;

constexpr double kSteps = 127 * 254;
constexpr double kNormal = 0x1p-126;  // smaller numbers may count as zero in bf16 products

struct Operation {
  const char* name;
  int64_t bits;  // bits of a number in the cache
  kernels::kv_store_f32_fn* kernels::KernelTable::* store;
  kernels::attention_f32_fn* kernels::KernelTable::* attention;
};
constexpr Operation kOperations[] = {
    {"f32", 32, &kernels::KernelTable::kv_store_f32, &kernels::KernelTable::attention_f32},
    {"bf16", 16, &kernels::KernelTable::kv_store_bf16, &kernels::KernelTable::attention_bf16},
    {"int8", 8, &kernels::KernelTable::kv_store_int8, &kernels::KernelTable::attention_int8},
    {"int4", 4, &kernels::KernelTable::kv_store_int4, &kernels::KernelTable::attention_int4},
};

const Operation& operation_of(std::string_view name) {
  for (const Operation& operation : kOperations) {
    if (name.ends_with(std::string("_") + operation.name)) return operation;
  }
  failed("a cache that check/attention.cpp does not know");
}

// One head of a block. It reads numbers by the layout that attention.h describes.
class Head {
 public:
  Head(const uint8_t* head, int64_t bits, int64_t dim) : head_(head), bits_(bits), dim_(dim) {}
  double key(int64_t slot, int64_t d) const {
    return number(0, slot, d, kernels::kv_key_columns(dim_, bits_)) * scale(slot);
  }
  double value(int64_t slot, int64_t d) const {
    return number(kernels::kv_key_bytes(dim_, bits_), d, slot, kKvBlockTokens) * scale(kKvBlockTokens + slot);
  }
  double scale(int64_t i) const {
    if (bits_ > 8) return 1;
    const int64_t at = kernels::kv_key_bytes(dim_, bits_) + kernels::kv_value_bytes(dim_, bits_) + i * 4;
    float result;
    std::memcpy(&result, head_ + at, 4);
    return result;
  }

 private:
  // Column c of output o of a packed matrix: lines of 16 outputs x 4 bytes.
  double number(int64_t matrix, int64_t o, int64_t c, int64_t cols) const {
    const int64_t columns = 32 / bits_, column = c % columns;
    const uint8_t* const unit = head_ + matrix + (o / 16 * (cols / columns) + c / columns) * 64 + o % 16 * 4;
    if (bits_ == 4) return 2.0 * kernels::kInt4Levels[unit[column % 4] >> (column < 4 ? 0 : 4) & 15] - 63;
    if (bits_ == 8) return unit[column] - 128.0;
    uint32_t bits = 0;
    std::memcpy(&bits, unit + column * bits_ / 8, static_cast<size_t>(bits_ / 8));
    return std::bit_cast<float>(bits_ == 16 ? bits << 16 : bits);
  }

  const uint8_t* head_;
  int64_t bits_, dim_;
};

struct Case {
  int64_t rows, dim, tokens, begin, window;
  double softcap;
  std::vector<float> q, keys, values;
  std::vector<int32_t> positions;
  int64_t ahead = 0;
  std::vector<double> cached_keys = {}, cached_values = {};  // the values that the cache holds
  std::vector<double> value_scales = {};                     // the scale of each token
};

Case make_case(uint64_t seed, int64_t rows, int64_t dim, int64_t tokens, int64_t begin, int64_t window, double softcap,
               double spread, Kind kind = Kind::kNormal) {
  Random random(seed);
  Case c = {rows, dim, tokens, begin, window, softcap, {}, {}, {}, {}};
  c.q = numbers(random, Kind::kNormal, rows, dim, 1e3);
  for (float& value : c.q) {  // a value that bf16 can hold, so that rounding does not change it
    value = bf16_to_f32(f32_to_bf16(value * static_cast<float>(spread / std::sqrt(static_cast<double>(dim)))));
  }
  c.keys = numbers(random, kind, tokens, dim, 10);
  c.values = numbers(random, kind, tokens, dim, 1e30);
  for (int64_t r = 0; r < rows; ++r) {
    c.positions.push_back(static_cast<int32_t>(begin + random.below(tokens - begin)));
  }
  return c;
}

// `rounds` says that the tier rounds softmax weights to bf16.
Expected compute(const Case& c, const Operation& operation, bool rounds) {
  Expected expected(c.rows * c.dim);
  std::vector<double> score(static_cast<size_t>(c.tokens));
  for (int64_t r = 0; r < c.rows; ++r) {
    const float* const q = c.q.data() + r * c.dim;
    const int64_t position = c.positions[static_cast<size_t>(r)];
    const int64_t first = std::max(c.begin, c.window > 0 ? position - c.window + 1 : 0);
    const int64_t last = std::min(c.tokens - 1, position + c.ahead);
    double peak_q = 0;
    for (int64_t d = 0; d < c.dim; ++d) peak_q = std::max(peak_q, std::fabs(static_cast<double>(q[d])));
    double largest = -INFINITY, worst = 0;
    for (int64_t t = first; t <= last; ++t) {
      const double* const key = c.cached_keys.data() + t * c.dim;
      double s = 0, size = 0, sum_key = 0, peak_key = 0;
      for (int64_t d = 0; d < c.dim; ++d) {
        s += q[d] * key[d];
        size += std::fabs(q[d] * key[d]);
        sum_key += std::fabs(key[d]);
        peak_key = std::max(peak_key, std::fabs(key[d]));
      }
      double error = static_cast<double>(c.dim + 1) * (kUnit * size + kTiny);
      if (operation.bits <= 8) error += (0.51 * peak_q / kSteps + kernels::kZeroKvPeak) * sum_key;
      if (rounds) error += static_cast<double>(c.dim) * kNormal * (1 + peak_q + peak_key);
      if (c.softcap > 0) {
        s = c.softcap * std::tanh(s / c.softcap);
        error = std::min(error, 2 * c.softcap) + c.softcap * kExp + 2 * kUnit * std::fabs(s);
      }
      score[static_cast<size_t>(t)] = s;
      worst = std::max(worst, error);
      largest = std::max(largest, s);
    }
    double sum = 0, range = 0, step = 0;
    for (int64_t t = first; t <= last; ++t) {
      double& s = score[static_cast<size_t>(t)];
      range = std::max(range, largest - s);
      s = std::exp(s - largest);
      sum += s;
    }
    // Subtracting the largest score rounds. So does rescaling for a larger one, once for each block.
    const double factor = std::expm1(2 * (worst + kUnit * range) + 2 * kExp);
    const double seen = static_cast<double>(last - first + 1), tokens = static_cast<double>(c.tokens);
    double relative = 2 * factor + (2 * seen + 2 * (tokens / 64 + 2) + 8) * kUnit;
    if (rounds) relative += 0x1p-8 * (1 + factor);
    for (int64_t t = first; t <= last; ++t) {  // the step of the weights, which are multiplied by their values' scales
      step = std::max(step, score[static_cast<size_t>(t)] / sum * c.value_scales[static_cast<size_t>(t)]);
    }
    for (int64_t d = 0; d < c.dim; ++d) {
      double out = 0, size = 0, peak = 0;
      for (int64_t t = first; t <= last; ++t) {
        const double v = c.cached_values[static_cast<size_t>(t * c.dim + d)];
        out += score[static_cast<size_t>(t)] / sum * v;
        size += score[static_cast<size_t>(t)] / sum * std::fabs(v);
        peak = std::max(peak, std::fabs(v));
      }
      double bound = relative * size + 2 * tokens * kTiny + 1.3e-38 * peak;
      if (operation.bits <= 8) bound += 127 * seen * (0.51 * step * (1 + factor) / kSteps + kernels::kZeroKvPeak);
      if (rounds) bound += 1.3e-38 * seen * (1 + peak);
      expected.value[static_cast<size_t>(r * c.dim + d)] = out;
      expected.bound[static_cast<size_t>(r * c.dim + d)] = bound;
    }
  }
  return expected;
}

// The cache of a case, with each block in memory of its own. Slots without a token hold old numbers.
struct Cache {
  std::vector<GuardedBytes> storage;
  std::vector<const uint8_t*> blocks;
};
Cache store(Case& c, const Operation& operation) {
  Cache cache;
  Random random(1);
  const int64_t bytes = kernels::kv_head_bytes(c.dim, operation.bits);
  const int64_t first = c.begin / kKvBlockTokens;
  c.cached_keys.assign(c.keys.size(), 0);
  c.cached_values.assign(c.keys.size(), 0);
  c.value_scales.assign(static_cast<size_t>(c.tokens), 0);
  for (int64_t b = first; b * kKvBlockTokens < c.tokens; ++b) {
    cache.storage.emplace_back(bytes);
    uint8_t* const block = cache.storage.back().data();
    for (int64_t i = 0; i < bytes; i += 2) {
      const uint16_t stale = f32_to_bf16(static_cast<float>(random.uniform(-1, 1)));
      std::memcpy(block + i, &stale, 2);
    }
    const Head head(block, operation.bits, c.dim);
    for (int64_t t = b * kKvBlockTokens; t < std::min(c.tokens, (b + 1) * kKvBlockTokens); ++t) {
      const int64_t slot = t % kKvBlockTokens;
      (kernels::kernels_for(Tier::kScalar).*
       operation.store)({c.keys.data() + t * c.dim, c.values.data() + t * c.dim, c.dim, slot, block});
      c.value_scales[static_cast<size_t>(t)] = head.scale(kKvBlockTokens + slot);
      for (int64_t d = 0; d < c.dim; ++d) {
        c.cached_keys[static_cast<size_t>(t * c.dim + d)] = head.key(slot, d);
        c.cached_values[static_cast<size_t>(t * c.dim + d)] = head.value(slot, d);
      }
    }
    cache.blocks.push_back(block);
  }
  return cache;
}

// Runs the kernel for `rows` rows from `first_row` on, and returns out [rows, dim].
GuardedBytes run(const Case& c, const Operation& operation, const Cache& cache, Tier tier, int64_t first_row,
                 int64_t rows) {
  GuardedBytes out(rows * c.dim * 4);
  const GuardedBytes scratch(kernels::attention_scratch(c.dim) * 4);
  const GuardedBytes q = guarded({c.q.begin() + first_row * c.dim, c.q.begin() + (first_row + rows) * c.dim});
  std::vector<const float*> q_rows;
  std::vector<float*> out_rows;
  for (int64_t r = 0; r < rows; ++r) {
    q_rows.push_back(q.as<float>() + r * c.dim);
    out_rows.push_back(out.as<float>() + r * c.dim);
  }
  AttentionArgs args = {};
  args.q = q_rows.data();
  args.positions = c.positions.data() + first_row;
  args.rows = rows;
  args.head_dim = c.dim;
  args.blocks = cache.blocks.data();
  args.first_block = c.begin / kKvBlockTokens;
  args.kv_begin = c.begin;
  args.kv_end = c.tokens;
  args.window = c.window;
  args.ahead = c.ahead;
  args.softcap = static_cast<float>(c.softcap);
  args.out = out_rows.data();
  args.scratch = scratch.as<float>();
  (kernels::kernels_for(tier).*operation.attention)(args);

  // If max and sum are given, the kernel does not divide by the sum. After the division here, the result must be the
  // same.
  const GuardedBytes partial(rows * c.dim * 4), largest(rows * 4), sum(rows * 4);
  for (int64_t r = 0; r < rows; ++r) out_rows[static_cast<size_t>(r)] = partial.as<float>() + r * c.dim;
  args.max = largest.as<float>();
  args.sum = sum.as<float>();
  (kernels::kernels_for(tier).*operation.attention)(args);
  for (int64_t i = 0; i < rows * c.dim; ++i) {
    const double whole = out.as<float>()[i], part = partial.as<float>()[i] / sum.as<float>()[i / c.dim];
    if (!(std::fabs(whole - part) <= 4 * kUnit * std::fabs(whole) + kTiny) && std::isfinite(whole)) {
      failed("value " + std::to_string(i) + " differs when it is left unnormalised");
    }
  }
  return out;
}

void check_case(std::string_view name, const Operation& operation, Case c, const Tiers& tiers) {
  const Cache cache = store(c, operation);
  const Expected exact = compute(c, operation, false), rounded = compute(c, operation, operation.bits == 16);
  for (const Tier tier : tiers) {
    const bool rounds = tier_includes(tier, Tier::kAvx512Bf16) || tier_includes(tier, Tier::kAmxEmulated);
    begin_case(name, tier,
               shape_text("rows", c.rows, "head_dim", c.dim, "tokens", c.tokens, "begin", c.begin, "window", c.window));
    const GuardedBytes out = run(c, operation, cache, tier, 0, c.rows);
    expect_within(out.as<float>(), rounds ? rounded : exact);
    const int64_t row = c.rows / 2;
    const GuardedBytes alone = run(c, operation, cache, tier, row, 1);
    expect_same_bits(alone.as<float>(), out.as<float>() + row * c.dim, c.dim, "with other rows");
  }
}

void check_not_finite(std::string_view name, const Operation& operation, float value, const Tiers& tiers) {
  for (const int operand : {0, 1, 2}) {  // query, key and value
    Case c = make_case(7, 3, 32, 100, 0, 0, 0, 2);
    c.positions = {0, 99, 40};
    c.keys[2 * 32 + 5] = c.q[2 * 32 + 5] < 0 ? -1.0f : 1.0f;  // an infinite key then has the score inf and not -inf
    (operand == 0 ? c.q : operand == 1 ? c.keys : c.values)[2 * 32 + 5] *= value;
    const Cache cache = store(c, operation);
    for (const Tier tier : tiers) {
      begin_case(name, tier,
                 std::string(value > 0 ? "an infinity" : "a NaN") + " in operand " + std::to_string(operand));
      const GuardedBytes out = run(c, operation, cache, tier, 0, 3);
      for (int64_t d = 0; d < 32; ++d) {
        const bool touched = operand < 2 || d == 5;  // a value affects its own column, in all rows of the call
        if (operand < 2 && !std::isfinite(out.as<float>()[d])) failed("shows in a row that does not see it");
        if (touched && std::isfinite(out.as<float>()[2 * 32 + d])) failed("does not show");
      }
    }
  }
}

}  // namespace

void check_kv_store(std::string_view name, const Tiers& tiers) {
  const Operation& operation = operation_of(name);
  Random random(3);
  // Whether the cache may hold `got` for x, which is one of `dim` numbers with this largest magnitude and root mean
  // square: x itself, the nearest bf16, a value within half a step of int8, or the nearest level of int4.
  const auto right = [&](double got, float x, int64_t dim, double peak, double mean) {
    if (operation.bits == 32) return got == x;
    if (operation.bits == 16) return got == bf16_to_f32(f32_to_bf16(x));
    if (operation.bits == 4) {
      const double scale = mean / kernels::kInt4Unit;
      double nearest = INFINITY;
      for (const int level : kernels::kInt4Levels) nearest = std::min(nearest, std::fabs((2 * level - 63) * scale - x));
      const double rounding = static_cast<double>(2 * dim + 16) * kUnit;
      return std::fabs(got - x) <= nearest + 63 * scale * rounding + kernels::kZeroKvPeak;
    }
    const double step = peak / 127;
    return std::fabs(got - x) <= step * (0.5 + 127 * 6 * kUnit) + kernels::kZeroKvPeak;
  };
  for (const int64_t dim : {2, 6, 16, 18, 34, 64, 80, 256}) {
    const Kind kind = dim % 4 == 2 ? Kind::kBits : Kind::kNormal;
    const std::vector<float> key = numbers(random, kind, 1, dim, 1e30), value = numbers(random, kind, 1, dim, 1e30);
    const GuardedBytes k = guarded(key), v = guarded(value);
    double peaks[2] = {}, means[2] = {};
    for (const int which : {0, 1}) {
      for (const double x : which == 0 ? key : value) {
        peaks[which] = std::max(peaks[which], std::fabs(x));
        means[which] += x * x / static_cast<double>(dim);
      }
      means[which] = std::sqrt(means[which]);
    }
    for (const Tier tier : tiers) {
      for (const int64_t slot : {0, 1, 15, 16, 40, 63}) {
        begin_case(name, tier, shape_text("head_dim", dim, "slot", slot));
        const GuardedBytes memory(kernels::kv_head_bytes(dim, operation.bits));
        const Head head(memory.data(), operation.bits, dim);
        (kernels::kernels_for(tier).*operation.store)({k.as<float>(), v.as<float>(), dim, slot, memory.data()});
        for (int64_t t = 0; t < kKvBlockTokens; ++t) {
          for (int64_t d = 0; d < dim; ++d) {
            const bool here = t == slot;  // other slots are not written
            const float x[] = {here ? key[static_cast<size_t>(d)] : 0, here ? value[static_cast<size_t>(d)] : 0};
            if (!right(head.key(t, d), x[0], dim, peaks[0], means[0])) failed("key of slot " + std::to_string(t));
            if (!right(head.value(t, d), x[1], dim, peaks[1], means[1])) failed("value of slot " + std::to_string(t));
          }
        }
      }
    }
  }
}

void check_attention(std::string_view name, const Tiers& tiers) {
  const Operation& operation = operation_of(name);
  uint64_t seed = 0;
  const auto check = [&](int64_t rows, int64_t dim, int64_t tokens, int64_t begin, int64_t window, double softcap,
                         double spread, Kind kind = Kind::kNormal) {
    check_case(name, operation, make_case(++seed, rows, dim, tokens, begin, window, softcap, spread, kind), tiers);
  };
  for (const int64_t dim : {2, 4, 6, 14, 16, 18, 32, 34, 64, 66, 80, 128, 256}) {
    check(1, dim, 70, 0, 0, 0, 2);
    check(1 + dim % 16, dim, 1 + dim % 70, 0, 0, 0, 2);
  }
  for (const int64_t tokens : {1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 200})
    check(1 + tokens % 5, 16, tokens, 0, 0, 0, 2);
  for (int64_t rows = 1; rows <= kernels::kMaxAttentionRows; rows += 1 + rows / 9) check(rows, 32, 90, 0, 20, 5, 2);
  for (const int64_t window : {1, 2, 15, 16, 17, 63, 64, 65, 300}) check(5, 16, 150, 0, window, 0, 2);
  for (const int64_t ahead : {1, 15, 16, 63, 64, 200}) {  // no window at first, then a window as long as the look-ahead
    for (const int64_t window : {int64_t{0}, ahead + 1}) {
      Case c = make_case(++seed, 5, 32, 150, 0, window, 0, 2);
      c.ahead = ahead;
      check_case(name, operation, std::move(c), tiers);
    }
  }
  for (const int64_t begin : {1, 16, 63, 64, 65, 130}) check(4, 32, 150, begin, 0, 0, 2);
  for (const double softcap : {0.1, 30.0}) {
    for (const double spread : {0.01, 40.0, 1000.0}) check(3, 64, 80, 0, 0, softcap, spread);
  }
  for (const double spread : {1e-6, 100.0, 1e4}) check(3, 64, 130, 0, 0, 0, spread);
  for (const Kind kind : kKinds) check(4, 48, 100, 0, 0, 0, 2, kind);
  check_not_finite(name, operation, std::numeric_limits<float>::quiet_NaN(), tiers);
  check_not_finite(name, operation, std::numeric_limits<float>::infinity(), tiers);
}

}  // namespace gemlet::check
