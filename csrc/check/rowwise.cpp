// Checks the row operations, with rows of every length modulo the vector length.
#include <algorithm>
#include <cmath>
#include <limits>

#include "check/check.h"
#include "kernels/registry.h"

namespace gemlet::check {
namespace {

using kernels::KernelTable;

// The operands of an operation: x, a second and a third operand, and a number. `out` starts as a copy of x.
struct Operands {
  std::vector<float> x, other, third;
  float scalar;
};

struct Operation {
  const char* name;
  double largest;  // the largest |x|
  float scalar;
  void (*run)(const KernelTable&, const Operands&, const float* x, const float* other, const float* third, float* out);
  // the value of out[i] and its error bound
  void (*expect)(const Operands&, int64_t i, double& value, double& bound);
};

double mean_square(const std::vector<float>& x) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  return sum / static_cast<double>(x.size());
}

void expect_rms_norm(const std::vector<float>& x, const Operands& o, int64_t i, double& value, double& bound) {
  const double weight = o.other[static_cast<size_t>(i)];
  value = x[static_cast<size_t>(i)] / std::sqrt(mean_square(x) + o.scalar) * weight;
  bound = (static_cast<double>(x.size()) / 2 + 8) * kUnit * std::fabs(value) + (2 + std::fabs(weight)) * kTiny;
}

const Operation kOperations[] = {
    {"rms_norm", 1e16, 1e-6f,
     [](const KernelTable& table, const Operands& o, const float* x, const float* other, const float*, float* out) {
       table.rms_norm(x, other, o.scalar, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) { expect_rms_norm(o.x, o, i, value, bound); }},
    {"rms_norm_add", 1e16, 1e-5f,
     [](const KernelTable& table, const Operands& o, const float*, const float* other, const float* third, float* out) {
       table.rms_norm_add(third, other, o.scalar, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) {
       expect_rms_norm(o.third, o, i, value, bound);
       value += o.x[static_cast<size_t>(i)];
       bound += kUnit * std::fabs(value);
     }},
    {"add", 1e30, 0,
     [](const KernelTable& table, const Operands& o, const float*, const float* other, const float*, float* out) {
       table.add(other, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) {
       value = o.x[static_cast<size_t>(i)] + o.other[static_cast<size_t>(i)];  // one operation, rounded once
       bound = 0;
     }},
    {"gelu_mul", 1e10, 0,
     [](const KernelTable& table, const Operands& o, const float* x, const float* other, const float*, float* out) {
       table.gelu_mul(x, other, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) {
       const double g = o.x[static_cast<size_t>(i)], up = o.other[static_cast<size_t>(i)];
       value = g / 2 * (1 + std::tanh(std::sqrt(2 / 3.141592653589793) * (g + 0.044715 * g * g * g))) * up;
       bound = (2 * kExp + 8 * kUnit) * std::fabs(g * up) + 2 * kTiny;
     }},
    {"exact_gelu_mul", 1e10, 0,
     [](const KernelTable& table, const Operands& o, const float* x, const float* other, const float*, float* out) {
       table.exact_gelu_mul(x, other, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) {
       const double g = o.x[static_cast<size_t>(i)], up = o.other[static_cast<size_t>(i)];
       value = g / 2 * std::erfc(g / -std::sqrt(2.0)) * up;
       bound = (1e-7 + 2 * kExp + 8 * kUnit) * std::fabs(g * up) + 2 * kTiny;
     }},
    {"sigmoid_mul", 1e30, 0,
     [](const KernelTable& table, const Operands& o, const float* x, const float* other, const float*, float* out) {
       table.sigmoid_mul(x, other, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) {
       const double gate = o.x[static_cast<size_t>(i)], x = o.other[static_cast<size_t>(i)];
       value = x / (1 + std::exp(-gate));
       bound = (2 * kExp + 4 * kUnit) * std::fabs(value) + 1e-37 * std::fabs(x) + 2 * kTiny;
     }},
    {"softcap", 1e30, 30,
     [](const KernelTable& table, const Operands& o, const float*, const float*, const float*, float* out) {
       table.softcap(o.scalar, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) {
       value = o.scalar * std::tanh(static_cast<double>(o.x[static_cast<size_t>(i)]) / o.scalar);
       bound = o.scalar * kExp + 4 * kUnit * std::fabs(value);
     }},
    {"rope", 1e20, 0.0625f,
     [](const KernelTable& table, const Operands& o, const float*, const float* other, const float* third, float* out) {
       table.rope(other, third, o.scalar, static_cast<int64_t>(o.x.size()), out);
     },
     [](const Operands& o, int64_t i, double& value, double& bound) {
       const size_t half = o.x.size() / 2, k = static_cast<size_t>(i) % half;
       const double a = o.x[k], b = o.x[k + half], cosine = o.other[k], sine = o.third[k];
       const bool low = static_cast<size_t>(i) < half;
       value = (low ? a * cosine - b * sine : b * cosine + a * sine) * o.scalar;
       const double size =
           low ? std::fabs(a * cosine) + std::fabs(b * sine) : std::fabs(b * cosine) + std::fabs(a * sine);
       bound = 4 * kUnit * size * o.scalar + 4 * kTiny;
     }},
    {"row_max", 1e30, 0,
     [](const KernelTable& table, const Operands& o, const float* x, const float*, const float*, float* out) {
       std::fill_n(out, o.x.size(), table.row_max(x, static_cast<int64_t>(o.x.size())));
     },
     [](const Operands& o, int64_t, double& value, double& bound) {
       value = *std::max_element(o.x.begin(), o.x.end());
       bound = 0;
     }},
};

Operands make_operands(const Operation& operation, int64_t dim, Kind kind, uint64_t seed) {
  Random random(seed);
  Operands o = {numbers(random, kind, 1, dim, operation.largest), numbers(random, Kind::kNormal, 1, dim, 1e30),
                numbers(random, kind, 1, dim, operation.largest), operation.scalar};
  const std::string_view name = operation.name;
  if (name == "rope") {
    o.x.insert(o.x.end(), o.third.begin(), o.third.end());
    for (size_t i = 0; i < o.third.size(); ++i) {
      const double angle = random.uniform(-9, 9);
      o.other[i] = static_cast<float>(std::cos(angle));
      o.third[i] = static_cast<float>(std::sin(angle));
    }
  }
  return o;
}

std::vector<float> run(const Operation& operation, const Operands& o, Tier tier) {
  const GuardedBytes x = guarded(o.x), other = guarded(o.other), third = guarded(o.third), out = guarded(o.x);
  operation.run(kernels::kernels_for(tier), o, x.as<float>(), other.as<float>(), third.as<float>(), out.as<float>());
  return {out.as<float>(), out.as<float>() + o.x.size()};
}

void check(const Operation& operation, int64_t dim, Kind kind, uint64_t seed, const Tiers& tiers) {
  const Operands o = make_operands(operation, dim, kind, seed);
  Expected expected(static_cast<int64_t>(o.x.size()));
  // Sums over a row are the same for all its values, so only some values of a long row are checked.
  const size_t step = o.x.size() > 300 ? 37 : 1;
  for (size_t i = 0; i < o.x.size(); ++i) {
    if (i % step == 0 || i + 20 > o.x.size()) {
      operation.expect(o, static_cast<int64_t>(i), expected.value[i], expected.bound[i]);
    } else {
      expected.bound[i] = INFINITY;
    }
  }
  for (const Tier tier : tiers) {
    begin_case(operation.name, tier, shape_text("dim", dim, "kind", static_cast<int64_t>(kind)));
    expect_within(run(operation, o, tier).data(), expected);
  }
}

// Checks that no operation turns an infinity or a NaN into an ordinary number. An overflow must reach the logits, where
// it is reported.
void check_not_finite(const Operation& operation, const Tiers& tiers) {
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
    for (const int64_t dim : {1, 16, 41}) {
      Operands o = make_operands(operation, dim, Kind::kNormal, 1);
      const int64_t at = dim / 3;
      (std::string_view(operation.name) == "rms_norm_add" ? o.third : o.x)[static_cast<size_t>(at)] = value;
      double exact = 0, bound = 0;
      operation.expect(o, at, exact, bound);
      for (const Tier tier : tiers) {
        begin_case(operation.name, tier, shape_text("dim", dim) + ", a value that is not finite");
        const double got = run(operation, o, tier)[static_cast<size_t>(at)];
        if (std::isfinite(exact) ? got != static_cast<float>(exact) : std::isfinite(got)) {
          failed("gives " + std::to_string(got) + ", expected " + std::to_string(exact));
        }
      }
    }
  }
}

}  // namespace

void check_rowwise(std::string_view name, const Tiers& tiers) {
  for (const Operation& operation : kOperations) {
    if (operation.name != name) continue;
    for (int64_t dim = 1; dim <= 40; ++dim) check(operation, dim, Kind::kNormal, static_cast<uint64_t>(dim), tiers);
    for (const Kind kind : kKinds) {
      for (const int64_t dim : {7, 16, 33, 64, 129, 640, 2561}) check(operation, dim, kind, 77, tiers);
    }
    // The sampler looks for NaN itself; row_max only serves to measure memory.
    if (name != "row_max") check_not_finite(operation, tiers);
    return;
  }
  failed("not an operation that check/rowwise.cpp knows");
}

}  // namespace gemlet::check
