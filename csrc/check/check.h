// What the checks of the kernels share: random numbers, memory that ends at an unreadable page, and error bounds.
//
// gemlet_check runs where Python and NumPy do not: under an emulator, on a bare board. Every kernel of every tier that
// the machine has is compared with the operation's formula in float64, at many shapes and on numbers of many kinds.
// kUnit is the rounding error of float32: one operation is off by at most kUnit times its result, or by kTiny where the
// result is denormal; a sum of n products, in any order, with or without FMA, by at most (n + 1) kUnit sum |x w|.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/cpu_features.h"

namespace gemlet::check {

constexpr double kUnit = 0x1p-24;
constexpr double kTiny = 0x1p-149;
// e^x of kernels/simd/vector.h is within kExp of its value relatively, tanh within it absolutely.
constexpr double kExp = 2e-7 + 2 * kUnit;

// Names the case at hand, for every message and for the handler of signals.
void begin_case(std::string_view operation, Tier tier, const std::string& shape);
const char* current_case();
// Throws with the case's name before `what`.
[[noreturn]] void failed(const std::string& what);

// "rows 3, cols 64" from "rows", 3, "cols", 64.
template <typename... Rest>
std::string shape_text(const char* name, int64_t value, Rest... rest) {
  std::string text = std::string(name) + " " + std::to_string(value);
  if constexpr (sizeof...(rest) > 0) text += ", " + shape_text(rest...);
  return text;
}

// What float64 says, and how far from it float32 may be.
struct Expected {
  std::vector<double> value, bound;
  explicit Expected(int64_t count) : value(static_cast<size_t>(count)), bound(static_cast<size_t>(count)) {}
};
void expect_within(const float* got, const Expected& expected);
void expect_same_bits(const float* got, const float* expected, int64_t count, const char* when);

// Bytes that end at a page which can be neither read nor written; there is one before them, too.
class GuardedBytes {
 public:
  explicit GuardedBytes(int64_t bytes);
  ~GuardedBytes();
  GuardedBytes(GuardedBytes&& other) noexcept;
  GuardedBytes& operator=(GuardedBytes&&) = delete;
  uint8_t* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* pages_ = nullptr;
  int64_t length_ = 0;
  uint8_t* data_ = nullptr;
};
GuardedBytes guarded(const std::vector<float>& values);

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits();
  int64_t below(int64_t end) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(end)); }
  double uniform(double low, double high);
  double normal();

 private:
  uint64_t state_;
};

// kBits: every exponent is as likely as any other; kOutliers and kZeroBlocks go by blocks of 32; kCoarse has many ties
// when rounded.
enum class Kind { kNormal, kBits, kDenormal, kOutliers, kZeroBlocks, kCoarse };
constexpr Kind kKinds[] = {Kind::kNormal,   Kind::kBits,       Kind::kDenormal,
                           Kind::kOutliers, Kind::kZeroBlocks, Kind::kCoarse};
// `rows` rows of `cols` numbers, none larger than `largest`.
std::vector<float> numbers(Random& random, Kind kind, int64_t rows, int64_t cols, double largest);

// The tiers that have a kernel of their own for the operation at hand and that may run.
using Tiers = std::vector<Tier>;
void check_quantize_i8(const Tiers& tiers);
void check_round_bf16(const Tiers& tiers);
void check_matmul(std::string_view operation, const Tiers& tiers);
void check_kv_store(std::string_view operation, const Tiers& tiers);
void check_attention(std::string_view operation, const Tiers& tiers);
void check_rowwise(std::string_view operation, const Tiers& tiers);

// A small random model in every weight format: the logits of `tier` against those of the scalar tier.
void check_model(Tier tier);

}  // namespace gemlet::check
