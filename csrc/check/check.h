// Helpers of all checks: random numbers, memory that ends at an unreadable page, and error bounds.
//
// gemlet_check runs where Python and NumPy do not, for example under an emulator or on a small board. It compares every
// kernel of every tier that the machine has with the operation's formula in float64, for many shapes and kinds of
// numbers. kUnit is the rounding error of float32: one operation is off by at most kUnit times its result, or by kTiny
// where the result is subnormal. A sum of n products, in any order, with or without FMA, is off by at most (n + 1)
// kUnit sum |x w|.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/cpu_features.h"
#include "model/model.h"

namespace gemlet::check {

constexpr double kUnit = 0x1p-24;
constexpr double kTiny = 0x1p-149;
// The relative error of e^x in kernels/simd/vector.h, and the absolute error of tanh, are at most kExp.
constexpr double kExp = 2e-7 + 2 * kUnit;

// Names the current case, for messages and for the signal handler.
void begin_case(std::string_view operation, Tier tier, const std::string& shape);
const char* current_case();
// Throws an error with the case's name and `what`.
[[noreturn]] void failed(const std::string& what);

// Makes "rows 3, cols 64" from "rows", 3, "cols", 64.
template <typename... Rest>
std::string shape_text(const char* name, int64_t value, Rest... rest) {
  std::string text = std::string(name) + " " + std::to_string(value);
  if constexpr (sizeof...(rest) > 0) text += ", " + shape_text(rest...);
  return text;
}

// The result in float64, and the largest error that a float32 result may have.
struct Expected {
  std::vector<double> value, bound;
  explicit Expected(int64_t count) : value(static_cast<size_t>(count)), bound(static_cast<size_t>(count)) {}
};
void expect_within(const float* got, const Expected& expected);
void expect_same_bits(const float* got, const float* expected, int64_t count, const char* when);

// Memory between two pages that can be neither read nor written. The memory ends exactly where the second page begins.
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

// kBits: all exponents are equally likely. kOutliers and kZeroBlocks differ within and between blocks of 32. kCoarse:
// there are many ties in rounding.
enum class Kind { kNormal, kBits, kDenormal, kOutliers, kZeroBlocks, kCoarse };
constexpr Kind kKinds[] = {Kind::kNormal,   Kind::kBits,       Kind::kDenormal,
                           Kind::kOutliers, Kind::kZeroBlocks, Kind::kCoarse};
// `rows` rows of `cols` numbers, none of larger magnitude than `largest`.
std::vector<float> numbers(Random& random, Kind kind, int64_t rows, int64_t cols, double largest);

// The tiers that have a kernel of their own for the operation and that this machine can run.
using Tiers = std::vector<Tier>;
void check_quantize_i8(const Tiers& tiers);
void check_round_bf16(const Tiers& tiers);
void check_round_s8(std::string_view operation, const Tiers& tiers);  // and quantize_s8
void check_matmul(std::string_view operation, const Tiers& tiers);
void check_kv_store(std::string_view operation, const Tiers& tiers);
void check_attention(std::string_view operation, const Tiers& tiers);
void check_rowwise(std::string_view operation, const Tiers& tiers);

// A random model with full attention, sliding windows and soft-capping, of kSmallVocab tokens and a context of 256.
constexpr int64_t kSmallVocab = 301;
std::shared_ptr<Model> small_model(Tier tier, Format weights, KvFormat kv, int threads);

// Compares the logits of small random models in `tier` with those of the scalar tier, in every weight format.
void check_model(Tier tier);

// Many threads submit random requests to an engine at once: some are cancelled, run out of time or of memory, or share
// prefixes. Each answer must be one that the model would generate, and each KV block must be given back.
void check_engine(Tier tier);

// Checks `inputs` hostile sizes of images, sounds and towers.
void check_media(Tier tier, int64_t inputs, uint64_t seed);

}  // namespace gemlet::check
