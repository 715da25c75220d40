// Checks how activations are rounded to int8 and to bf16.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float_bits.h"
#include "check/check.h"
#include "kernels/registry.h"

namespace gemlet::check {

using kernels::Activations;
namespace {

// Checks one row of int8 activations: the scales, the integers (to half a step), and whether the offsets match the
// integers.
void check_row_i8(const std::vector<float>& x, int64_t cols, int32_t zero, bool power_of_two, bool halves,
                  const uint8_t* row) {
  for (int64_t b = 0; b < cols / kBlock; ++b) {
    const int64_t first = b * kBlock, count = std::clamp<int64_t>(static_cast<int64_t>(x.size()) - first, 0, kBlock);
    double peak = 0;
    for (int64_t i = 0; i < count; ++i) peak = std::max<double>(peak, std::fabs(x[static_cast<size_t>(first + i)]));
    const double scale = reinterpret_cast<const float*>(row + cols)[b];
    if (power_of_two) {
      int exponent;
      if (std::frexp(scale, &exponent) != 0.5 || peak / scale >= 127.5 || (peak / scale < 63.75 && scale > 0x1p-64))
        failed("scale of block " + std::to_string(b));
    } else if (!(std::fabs(scale - peak / 127) <= 2 * kUnit * peak / 127 + kTiny)) {
      failed("scale of block " + std::to_string(b));
    }
    int32_t sums[2] = {};
    for (int64_t i = 0; i < kBlock; ++i) {
      const int32_t q = static_cast<int8_t>(row[first + i]);
      sums[i / 16] += q;
      const double value = i < count ? x[static_cast<size_t>(first + i)] : 0;
      const double exact = power_of_two ? value / scale : peak > kernels::kZeroPeak ? value / peak * 127 : 0;
      if (!(std::fabs(q - exact) <= 0.5 + 127 * 6 * kUnit)) {
        failed("column " + std::to_string(first + i) + " is " + std::to_string(q) + ", expected " +
               std::to_string(exact));
      }
    }
    const int32_t offset = reinterpret_cast<const int32_t*>(row + cols + cols / kBlock * 4)[b];
    const bool right = halves
                           ? kernels::half_offset(offset, 0) == -sums[0] && kernels::half_offset(offset, 1) == -sums[1]
                           : offset == -zero * (sums[0] + sums[1]);
    if (!right) failed("offset of block " + std::to_string(b));
  }
}

}  // namespace

void check_quantize_i8(const Tiers& tiers) {
  uint64_t seed = 100;
  for (const Kind kind : kKinds) {
    for (const int64_t valid : {1, 5, 31, 32, 33, 63, 64, 100, 129, 1152}) {
      Random random(++seed);
      const int64_t cols = padded_cols(Format::kQ8, valid);
      const std::vector<float> values = numbers(random, kind, 1, valid, 1e28);
      const GuardedBytes x = guarded(values), out(kernels::activation_row_bytes(Activations::kI8, cols));
      const int32_t zero = seed % 2 == 0 ? 8 : 128;
      const bool halves = seed % 3 == 0;
      for (const Tier tier : tiers) {
        begin_case("quantize_i8", tier, shape_text("columns", valid, "kind", static_cast<int64_t>(kind)));
        kernels::kernels_for(tier).quantize_i8({x.as<float>(), valid, cols, zero, zero == 8, halves, out.data()});
        check_row_i8(values, cols, zero, zero == 8, halves, out.data());
      }
    }
  }
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> values(64, 1.0f);
    values[40] = value;
    for (const Tier tier : tiers) {
      for (const bool power_of_two : {false, true}) {
        begin_case("quantize_i8", tier, value > 0 ? "an infinity" : "a NaN");
        const GuardedBytes x = guarded(values), out(kernels::activation_row_bytes(Activations::kI8, 64));
        kernels::kernels_for(tier).quantize_i8({x.as<float>(), 64, 64, 8, power_of_two, false, out.data()});
        const float* const scales = reinterpret_cast<const float*>(out.data() + 64);
        if (std::isfinite(scales[power_of_two ? 0 : 1])) failed("does not show in a scale");
        if (!power_of_two && !std::isfinite(scales[0])) failed("shows in another block's scale");
      }
    }
  }
}

void check_round_s8(std::string_view operation, const Tiers& tiers) {
  uint64_t seed = 300;
  for (const Kind kind : kKinds) {
    for (const int64_t valid : {1, 5, 31, 32, 33, 63, 64, 100, 129, 1152}) {
      Random random(++seed);
      const int64_t cols = padded_cols(Format::kR8, valid);
      std::vector<float> values = numbers(random, kind, 1, valid, 1e28);
      if (seed % 4 == 0) values[0] = std::numeric_limits<float>::infinity();
      if (seed % 7 == 0) values[static_cast<size_t>(valid / 2)] = std::numeric_limits<float>::quiet_NaN();
      const float scale = seed % 3 == 0 ? 0.25f : static_cast<float>(random.uniform(1e-3, 2));
      const GuardedBytes x = guarded(values), out(kernels::activation_row_bytes(Activations::kS8, cols));
      const GuardedBytes rounded(valid * 4);
      for (const Tier tier : tiers) {
        begin_case(operation, tier, shape_text("columns", valid, "kind", static_cast<int64_t>(kind)));
        const kernels::KernelTable table = kernels::kernels_for(tier);
        table.quantize_s8({x.as<float>(), valid, cols, scale, out.data()});
        table.round_s8(x.as<float>(), scale, valid, rounded.as<float>());
        int32_t sum = 0, stored_sum;
        bool lost = false;
        for (int64_t c = 0; c < cols; ++c) {
          const float value = c < valid ? values[static_cast<size_t>(c)] : 0.0f;
          const float wanted = std::nearbyint(std::clamp(value / scale, -128.0f, 127.0f));
          if (std::isnan(value)) {
            lost = true;
            if (!std::isnan(rounded.as<float>()[c])) failed("a NaN does not show");
            continue;
          }
          if (static_cast<int8_t>(out.data()[c]) != wanted) {
            failed("column " + std::to_string(c) + " is " + std::to_string(static_cast<int8_t>(out.data()[c])));
          }
          if (c < valid && rounded.as<float>()[c] != wanted * scale) failed("rounded column " + std::to_string(c));
          sum += static_cast<int32_t>(wanted);
        }
        float stored;
        std::memcpy(&stored, out.data() + cols, 4);
        std::memcpy(&stored_sum, out.data() + cols + 4, 4);
        if (lost ? !std::isnan(stored) : stored != scale) failed("scale");
        if (stored_sum != sum) failed("sum");
      }
    }
  }
}

void check_round_bf16(const Tiers& tiers) {
  uint64_t seed = 200;
  for (const Kind kind : kKinds) {
    for (const int64_t valid : {1, 2, 15, 16, 17, 31, 32, 33, 100}) {
      Random random(++seed);
      std::vector<float> values = numbers(random, kind, 1, valid, 1e38);
      if (seed % 7 == 0) values[0] = std::numeric_limits<float>::quiet_NaN();
      const int64_t bytes = kernels::activation_row_bytes(Activations::kBf16, valid);
      const GuardedBytes x = guarded(values), out(bytes);
      for (const Tier tier : tiers) {
        begin_case("round_bf16", tier, shape_text("columns", valid, "kind", static_cast<int64_t>(kind)));
        kernels::kernels_for(tier).round_bf16({x.as<float>(), valid, bytes / 2, 64, out.data()});
        for (int64_t i = 0; i < bytes / 2; ++i) {
          const uint16_t expected = i < valid ? f32_to_bf16(values[static_cast<size_t>(i)]) : uint16_t{0};
          if (out.as<uint16_t>()[i] != expected) failed("column " + std::to_string(i));
        }
      }
    }
  }
}

}  // namespace gemlet::check
