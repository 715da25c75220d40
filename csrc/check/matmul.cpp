// Checks products with packed weights. The int8 kernels get activations that the scalar tier has rounded, so a product
// is exact except for the float32 sum over its blocks. The rounding itself is checked separately.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float_bits.h"
#include "check/check.h"
#include "formats/quantize.h"
#include "kernels/registry.h"

namespace gemlet::check {
namespace {

using kernels::Activations;
using kernels::MatmulArgs;
using kernels::MatmulOperation;

constexpr double kNormal = 0x1p-126;  // the smallest normal number of float32 and bf16

const kernels::KernelTable& definitions() {
  static const kernels::KernelTable table = kernels::kernels_for(Tier::kScalar);
  return table;
}

// Fills a panel of bf12 with as many exceptions as it has room for, and numbers up to 2^56.
void fill_bf12(Random& random, int64_t cols, uint8_t* panel) {
  for (int64_t i = 0; i < bf12_exceptions_at(cols); i += 2) {
    const uint16_t word = static_cast<uint16_t>(i < 64 ? random.below(160) << 7 : random.bits() & 0xffff);
    std::memcpy(panel + i, &word, 2);
  }
  const int64_t most = most_bf12_exceptions(cols), words = (cols + 7) / 8 * kBf12Words;
  uint8_t* const list = panel + bf12_exceptions_at(cols);
  for (int64_t i = 0; i <= most; ++i) {
    const int64_t place = ((i - 1) * words + random.below(words)) / most;
    const uint32_t entry = i == 0 ? static_cast<uint32_t>(most) : static_cast<uint32_t>(place << 8 | random.below(180));
    std::memcpy(list + 4 * i, &entry, 4);
  }
}

enum class Place : uint8_t { kHalf, kSmallScale, kWeight };

// The kind of byte `at` in a panel of a format in blocks: a part of an f16 scale, a small scale, or weights.
Place place_of(Format format, int64_t at) {
  const int64_t superblock = kScaleBytes + 2 * block_bytes(format);
  if (!in_groups(format)) return at % superblock < kScaleBytes ? Place::kHalf : Place::kWeight;
  at %= kLineBytes + kGroupSuperblocks * superblock;
  if (at < kLineBytes) return Place::kHalf;
  return (at - kLineBytes) % superblock < kScaleBytes ? Place::kSmallScale : Place::kWeight;
}

constexpr float kStaticScale = 0.0625f;  // the scale of x in forms with a fixed scale

// Fills panels with any bits that the format allows.
void fill_with_bits(Random& random, Format format, int64_t stride, uint8_t* panels, int64_t bytes) {
  if (format == Format::kF32 || format == Format::kBf16) {
    for (int64_t i = 0; i < bytes; i += 4) {
      // Both halves of two bf16 are floats. Numbers up to 2^56 keep all sums finite.
      const uint32_t bits = static_cast<uint32_t>(random.bits()) & 0xdbffdbffu;
      std::memcpy(panels + i, &bits, 4);
    }
    return;
  }
  if (row_bits(format) > 0) {
    for (int64_t i = 0; i < bytes; ++i) panels[i] = static_cast<uint8_t>(random.bits() >> 32);
    for (int64_t i = 0; i < bytes; i += stride) {
      for (int64_t r = 0; r < kPanelRows; ++r) {
        const float scale = static_cast<float>(random.uniform(-2, 2));
        std::memcpy(panels + i + 4 * r, &scale, 4);
      }
    }
    return;
  }
  for (int64_t i = 0; i < bytes; ++i) {
    const uint8_t byte = static_cast<uint8_t>(random.bits() >> 32);
    if (place_of(format, i % stride) == Place::kHalf) {
      panels[i] = i % 2 == 1 ? byte & 0xbf : byte | 1;  // f16 scales below 2, but not zero
    } else {
      panels[i] = format == Format::kQ8 && byte == 0 ? 1 : byte;  // q8 is -127 to 127
    }
  }
}

// Adds to each magnitude, so that bf12 has codes for all exponents of a row.
void narrow(std::vector<float>& w, int64_t cols) {
  for (auto row = w.begin(); row != w.end(); row += cols) {
    float peak = 0;
    for (auto at = row; at != row + cols; ++at) peak = std::max(peak, std::fabs(*at));
    for (auto at = row; at != row + cols; ++at) {
      if (*at != 0.0f) *at += std::copysign(peak / 8192.0f, *at);
    }
  }
}

GuardedBytes make_weights(Random& random, Format format, Kind kind, int64_t outputs, int64_t cols) {
  const int64_t stride = panel_bytes(format, cols);
  GuardedBytes panels(packed_bytes(format, outputs, cols));
  if (kind == Kind::kBits) {
    for (int64_t p = 0; format == Format::kBf12 && p < panel_count(outputs); ++p) {
      fill_bf12(random, cols, panels.data() + p * stride);
    }
    if (format != Format::kBf12) {
      fill_with_bits(random, format, stride, panels.data(), packed_bytes(format, outputs, cols));
    }
    return panels;
  }
  std::vector<float> w = numbers(random, kind, outputs, cols, 1e5);
  if (format == Format::kBf12) narrow(w, cols);
  for (int64_t p = 0; p < panel_count(outputs); ++p) {
    const int64_t rows = std::min(kPanelRows, outputs - p * kPanelRows);
    if (!pack_panel(format, w.data() + p * kPanelRows * cols, rows, cols, panels.data() + p * stride)) {
      failed("weights cannot be packed");
    }
  }
  return panels;
}

struct Case {
  const MatmulOperation& operation;
  int64_t rows, outputs, cols;
  GuardedBytes weights;
  GuardedBytes x;  // it has the form of activations that the operation takes
  MatmulArgs args;
  Expected expected;

  uint8_t* row(int64_t r) const {
    return x.data() + kernels::activation_offset(operation.activations, r, args.x_stride);
  }
};

// Returns the number in column c of a prepared row.
double activation(Activations form, const uint8_t* row, int64_t padded, int64_t c) {
  if (form == Activations::kF32) return reinterpret_cast<const float*>(row)[c];
  if (form == Activations::kBf16) return bf16_to_f32(reinterpret_cast<const uint16_t*>(row)[c]);
  if (form == Activations::kTiles) return bf16_to_f32(reinterpret_cast<const uint16_t*>(row + c / 32 * 1024)[c % 32]);
  if (form == Activations::kS8) return static_cast<int8_t>(row[c]) * static_cast<double>(kStaticScale);
  const double scale = reinterpret_cast<const float*>(row + padded)[c / kBlock];
  return static_cast<int8_t>(row[c]) * scale;
}

// Computes the expected results from the case's weights and activations in float64.
void compute(Case& c) {
  const Activations form = c.operation.activations;
  const bool int8 = form == Activations::kI8;
  const Matrix matrix = {c.operation.weights, c.outputs, c.cols, c.weights.data()};
  std::vector<float> w(static_cast<size_t>(c.cols));
  // The products of q and of the minimum are added apart, and each may be larger than the weight.
  GuardedBytes minima(packed_bytes(matrix.format, c.outputs, c.cols));
  std::vector<float> minimum(static_cast<size_t>(c.cols));
  for (int64_t at = 0; int8 && has_minimum(matrix.format) && at < packed_bytes(matrix.format, c.outputs, c.cols);
       ++at) {
    const bool weight = place_of(matrix.format, at % c.args.panel_stride) == Place::kWeight;
    minima.data()[at] = weight ? 0 : c.weights.data()[at];
  }
  // The terms of a float32 sum: products of columns, or of blocks scaled by the product of two scales.
  const double terms = static_cast<double>(int8 ? c.args.cols / kBlock + 4 : c.cols + 4);
  for (int64_t o = 0; o < c.outputs; ++o) {
    unpack_row(matrix, o, w.data());
    if (has_minimum(matrix.format)) unpack_row({matrix.format, c.outputs, c.cols, minima.data()}, o, minimum.data());
    if (form == Activations::kTiles) {
      for (float& weight : w) weight = bf16_to_f32(f32_to_bf16(weight));
    }
    for (int64_t r = 0; r < c.rows; ++r) {
      double sum = 0, size = 0, lost = 0;
      for (int64_t i = 0; i < c.cols; ++i) {
        const double x = activation(form, c.row(r), c.args.cols, i);
        const double weight = w[static_cast<size_t>(i)];
        sum += x * weight;
        size += std::fabs(x * weight) + 2 * std::fabs(x * minimum[static_cast<size_t>(i)]);
        if (std::fabs(x) < kNormal || std::fabs(weight) < kNormal) lost += std::fabs(x * weight);
      }
      // A subnormal product of two scales counts up to 127 * 127 times.
      const double steps = int8 ? 127 * 127 : form == Activations::kS8 ? 128 * 128 : 1;
      double bound = terms * kUnit * size + static_cast<double>(c.cols + 1) * steps * kTiny;
      if (form == Activations::kBf16 || form == Activations::kTiles)
        bound += lost + 2 * static_cast<double>(c.cols) * kNormal;
      c.expected.value[static_cast<size_t>(r * c.outputs + o)] = sum;
      c.expected.bound[static_cast<size_t>(r * c.outputs + o)] = bound;
    }
  }
}

Case make_case(Random& random, const MatmulOperation& operation, Kind x_kind, Kind w_kind, int64_t rows,
               int64_t outputs, int64_t cols) {
  const Format format = operation.weights;
  const int64_t padded = operation.activations == Activations::kF32 ? cols : padded_cols(format, cols);
  const int64_t stride = kernels::activation_row_bytes(operation.activations, padded);
  Case c = {operation,
            rows,
            outputs,
            cols,
            make_weights(random, format, w_kind, outputs, cols),
            GuardedBytes(kernels::activation_bytes(operation.activations, rows, stride)),
            {},
            Expected(rows * outputs)};
  const std::vector<float> x =
      numbers(random, x_kind, rows, cols, operation.activations == Activations::kI8 ? 1e28 : 1e17);
  c.args = {c.x.data(), stride,  rows,    c.weights.data(), panel_bytes(format, cols),
            padded,     nullptr, outputs, outputs,          nullptr};
  for (int64_t r = 0; r < rows; ++r) {
    kernels::prepare_row(definitions(), operation, x.data() + r * cols, cols, c.row(r), kStaticScale);
  }
  compute(c);
  return c;
}

// Copies row r to `to`, where it is the first row.
void copy_row(const Case& c, int64_t r, uint8_t* to) {
  if (c.operation.activations != Activations::kTiles) {
    std::memcpy(to, c.row(r), static_cast<size_t>(c.args.x_stride));
    return;
  }
  for (int64_t at = 0; at < 16 * c.args.x_stride; at += 1024) std::memcpy(to + at, c.row(r) + at, 64);
}

// Returns the operation with the same activations and weights that takes any number of rows.
const MatmulOperation& for_few_rows(const MatmulOperation& operation) {
  for (const MatmulOperation& other : kernels::kMatmuls) {
    const bool same = other.activations == operation.activations && other.weights == operation.weights;
    if (same && other.least_rows == 1) return other;
  }
  return operation;
}

void check_case(const Case& c, const Tiers& tiers) {
  for (const Tier tier : tiers) {
    begin_case(c.operation.name, tier, shape_text("rows", c.rows, "outputs", c.outputs, "cols", c.cols));
    auto* const kernel = kernels::kernels_for(tier).*c.operation.kernel;
    const GuardedBytes y(c.rows * c.outputs * 4);
    const GuardedBytes scratch(kernels::expanded_bytes(c.outputs, c.cols));
    MatmulArgs args = c.args;
    args.y = y.as<float>();
    args.scratch = scratch.data();
    kernel(args);
    expect_within(y.as<float>(), c.expected);

    if (c.operation.activations == Activations::kS8 && c.operation.in_tiles()) {
      const GuardedBytes few(c.rows * c.outputs * 4);
      args.y = few.as<float>();
      (kernels::kernels_for(tier).*for_few_rows(c.operation).kernel)(args);
      expect_same_bits(few.as<float>(), y.as<float>(), c.rows * c.outputs, "in the kernel for few rows");
    }

    // A single row or a single panel must give the same bits. The kernel must write nothing between the rows of y.
    const GuardedBytes alone_x(kernels::activation_bytes(c.operation.activations, 1, c.args.x_stride));
    const GuardedBytes alone((c.outputs + 3) * 4);
    for (int64_t r = 0; r < c.rows; ++r) {
      args = c.args;
      args.x = alone_x.data();
      copy_row(c, r, alone_x.data());
      args.rows = 1;
      args.y = alone.as<float>() + 3;
      kernel(args);
      expect_same_bits(alone.as<float>() + 3, y.as<float>() + r * c.outputs, c.outputs, "with other rows");
    }
    const int64_t panel = panel_count(c.outputs) - 1, first = panel * kPanelRows, last = c.outputs - first;
    const GuardedBytes wide((c.rows * (last + 1) - 1) * 4);
    std::memset(wide.data(), 0xff, static_cast<size_t>((c.rows * (last + 1) - 1) * 4));
    args = c.args;
    args.panels += panel * args.panel_stride;
    args.outputs = last;
    args.y = wide.as<float>();
    args.y_stride = last + 1;
    kernel(args);
    for (int64_t r = 0; r < c.rows; ++r) {
      const float* const row = wide.as<float>() + r * (last + 1);
      expect_same_bits(row, y.as<float>() + r * c.outputs + first, last, "with other panels");
      uint32_t gap = 0xffffffffu;
      if (r + 1 < c.rows) std::memcpy(&gap, row + last, 4);
      if (gap != 0xffffffffu) failed("wrote past the row's outputs");
    }
  }
}

// Checks that any bytes, for example from a damaged file, do no harm.
void check_damaged(const MatmulOperation& operation, const Tiers& tiers) {
  Random random(11);
  Case c = make_case(random, operation, Kind::kNormal, Kind::kNormal, 3, 20, 70);
  const GuardedBytes y(3 * 20 * 4), scratch(kernels::expanded_bytes(20, 70));
  for (int i = 0; i < 64; ++i) {
    const int64_t bytes = packed_bytes(operation.weights, 20, 70);
    for (int64_t at = 0; at < bytes; ++at) c.weights.data()[at] = static_cast<uint8_t>(i == 0 ? 255 : random.bits());
    if (operation.weights == Format::kBf12 && i % 2 == 1) {  // places within the panel in any order, and any count
      for (int64_t p = 0; p < 2; ++p) {
        uint8_t* const list = c.weights.data() + p * c.args.panel_stride + bf12_exceptions_at(70);
        const int64_t most = most_bf12_exceptions(70), counts[] = {0, most, most + 1, 0xffffffff};
        for (int64_t at = 0; at <= most; ++at) {
          const int64_t entry = at == 0 ? counts[i / 2 % 4] : random.below(2 * 9 * kBf12Words) << 8 | random.below(256);
          const uint32_t bits = static_cast<uint32_t>(entry);
          std::memcpy(list + 4 * at, &bits, 4);
        }
      }
    }
    for (const Tier tier : tiers) {
      begin_case(operation.name, tier, "any bytes");
      c.args.y = y.as<float>();
      c.args.scratch = i % 4 < 2 ? scratch.data() : nullptr;
      (kernels::kernels_for(tier).*operation.kernel)(c.args);
    }
  }
}

// Checks that infinity and NaN show in the results. They must reach the logits, where they are reported.
void check_not_finite(const MatmulOperation& operation, float value, const Tiers& tiers) {
  Random random(5);
  Case c = make_case(random, operation, Kind::kNormal, Kind::kNormal, 3, 20, 70);
  std::vector<float> x = numbers(random, Kind::kNormal, 1, 70, 1e3);
  x[69] = value;
  kernels::prepare_row(definitions(), operation, x.data(), 70, c.row(1), kStaticScale);
  for (const Tier tier : tiers) {
    begin_case(operation.name, tier, value > 0 ? "an infinity" : "a NaN");
    const GuardedBytes y(3 * 20 * 4);
    c.args.y = y.as<float>();
    (kernels::kernels_for(tier).*operation.kernel)(c.args);
    for (int i = 0; i < 60; ++i) {
      if (std::isfinite(y.as<float>()[i]) == (i / 20 == 1))
        failed("in row 1, but " + std::to_string(i) + " shows another");
    }
  }
}

// Checks the largest integers of both signs, for which sums of two products of bytes do not fit 16 bits.
void check_extremes(const MatmulOperation& operation, const Tiers& tiers) {
  Random random(7);
  Case c = make_case(random, operation, Kind::kNormal, Kind::kNormal, 9, 33, 320);
  const Format format = operation.weights;
  for (int64_t i = 0; i < packed_bytes(operation.weights, c.outputs, c.cols); ++i) {
    const bool low = random.below(8) == 0;
    const Place place = place_of(format, i % c.args.panel_stride);
    const int byte = place == Place::kHalf         ? i % 2 * 0x3c  // 1.0
                     : place == Place::kSmallScale ? 1
                     : format == Format::kQ8       ? (low ? 1 : 255)
                                                   : (low ? 0x0f : 0xff);
    c.weights.data()[i] = static_cast<uint8_t>(byte);
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    std::vector<float> x(320);
    for (float& value : x) value = r % 3 == 0 ? 127.0f : r % 3 == 1 ? -127.0f : random.below(2) == 0 ? 127.0f : -127.0f;
    kernels::prepare_row(definitions(), operation, x.data(), 320, c.row(r));
  }
  compute(c);
  std::fill(c.expected.bound.begin(), c.expected.bound.end(), 0.0);  // integers below 2^24
  check_case(c, tiers);
}

// The same check for r8, r4 and r2, whose x may be -128.
void check_static_extremes(const MatmulOperation& operation, const Tiers& tiers) {
  Random random(8);
  Case c = make_case(random, operation, Kind::kNormal, Kind::kNormal, 9, 33, 320);
  for (int64_t i = 0; i < packed_bytes(operation.weights, c.outputs, c.cols); ++i) {
    const bool scale = i % c.args.panel_stride < kRowScaleBytes;
    const int part = static_cast<int>(i % 4);  // 1.0f is 0x3f800000
    const int one = part == 3 ? 0x3f : part == 2 ? 0x80 : 0;
    c.weights.data()[i] = static_cast<uint8_t>(scale ? one : random.below(3) == 0 ? 0 : 255);
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    std::vector<float> x(320);
    for (float& value : x) value = r % 3 == 0 ? 1e3f : r % 3 == 1 ? -1e3f : random.below(2) == 0 ? 1e3f : -1e3f;
    kernels::prepare_row(definitions(), operation, x.data(), 320, c.row(r), kStaticScale);
  }
  compute(c);
  std::fill(c.expected.bound.begin(), c.expected.bound.end(), 0.0);  // integers below 2^24
  check_case(c, tiers);
}

}  // namespace

void check_matmul(std::string_view name, const Tiers& tiers) {
  const auto found = std::find_if(std::begin(kernels::kMatmuls), std::end(kernels::kMatmuls),
                                  [&](const MatmulOperation& operation) { return operation.name == name; });
  if (found == std::end(kernels::kMatmuls)) failed("not in kMatmuls");
  const MatmulOperation& operation = *found;
  uint64_t seed = 0;
  for (const int64_t cols :
       {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 97, 127, 128, 130, 257, 640}) {
    Random random(++seed);
    const int64_t rows = 1 + cols * 7 % 11, outputs = 1 + cols * 5 % 37;
    check_case(make_case(random, operation, Kind::kNormal, Kind::kNormal, rows, outputs, cols), tiers);
  }
  for (int64_t rows = 1; rows <= 20; ++rows) {
    Random random(++seed);
    check_case(make_case(random, operation, Kind::kNormal, Kind::kBits, rows, 1 + rows * 7 % 50, 64), tiers);
  }
  for (const Kind x_kind : kKinds) {
    for (const Kind w_kind : kKinds) {
      Random random(++seed);
      const int64_t rows = 1 + random.below(9), cols = 64 + random.below(70);
      check_case(make_case(random, operation, x_kind, w_kind, rows, 20, cols), tiers);
    }
  }
  check_not_finite(operation, std::numeric_limits<float>::quiet_NaN(), tiers);
  const bool bounded = operation.activations == Activations::kS8;
  if (!bounded) check_not_finite(operation, std::numeric_limits<float>::infinity(), tiers);
  check_damaged(operation, tiers);
  if (operation.activations == Activations::kI8) check_extremes(operation, tiers);
  if (operation.activations == Activations::kS8) check_static_extremes(operation, tiers);
}

}  // namespace gemlet::check
