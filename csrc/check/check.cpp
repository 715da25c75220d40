#include "check/check.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace gemlet::check {

namespace {
char case_name[256] = "start";
}

const char* current_case() { return case_name; }

void begin_case(std::string_view operation, Tier tier, const std::string& shape) {
  const std::string text = std::string(operation) + ", " + std::string(tier_name(tier)) + ", " + shape;
  const size_t length = std::min(text.size(), sizeof case_name - 1);
  std::memcpy(case_name, text.data(), length);
  case_name[length] = '\0';
}

void failed(const std::string& what) { throw std::runtime_error(std::string(case_name) + ": " + what); }

void expect_within(const float* got, const Expected& expected) {
  for (size_t i = 0; i < expected.value.size(); ++i) {
    const double error = std::fabs(got[i] - expected.value[i]);
    if (error <= expected.bound[i]) continue;  // false for NaN
    std::ostringstream what;
    what.precision(9);
    what << "value " << i << " is " << got[i] << ", expected " << expected.value[i] << " +- " << expected.bound[i];
    failed(what.str());
  }
}

void expect_same_bits(const float* got, const float* expected, int64_t count, const char* when) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::bit_cast<uint32_t>(got[i]) == std::bit_cast<uint32_t>(expected[i])) continue;
    std::ostringstream what;
    what.precision(9);
    what << "value " << i << " is " << got[i] << ", but " << expected[i] << " " << when;
    failed(what.str());
  }
}

GuardedBytes::GuardedBytes(int64_t bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t inside = (bytes + page - 1) / page * page;
  length_ = inside + 2 * page;
  void* const pages =
      mmap(nullptr, static_cast<size_t>(length_), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED ||
      mprotect(static_cast<uint8_t*>(pages) + page, static_cast<size_t>(inside), PROT_READ | PROT_WRITE) != 0) {
    failed("no memory for " + std::to_string(bytes) + " bytes");
  }
  pages_ = static_cast<uint8_t*>(pages);
  data_ = pages_ + page + inside - bytes;
}

GuardedBytes::~GuardedBytes() {
  if (pages_) munmap(pages_, static_cast<size_t>(length_));
}

GuardedBytes::GuardedBytes(GuardedBytes&& other) noexcept
    : pages_(other.pages_), length_(other.length_), data_(other.data_) {
  other.pages_ = nullptr;
}

GuardedBytes guarded(const std::vector<float>& values) {
  GuardedBytes memory(static_cast<int64_t>(values.size() * sizeof(float)));
  std::memcpy(memory.data(), values.data(), values.size() * sizeof(float));
  return memory;
}

uint64_t Random::bits() {  // splitmix64
  uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

double Random::uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53;
}

double Random::normal() {
  return std::sqrt(-2 * std::log(uniform(1e-12, 1))) * std::cos(uniform(0, 6.283185307179586));
}

std::vector<float> numbers(Random& random, Kind kind, int64_t rows, int64_t cols, double largest) {
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows * cols; ++i) {
    const int64_t column = i % cols;
    double value = random.normal();
    if (kind == Kind::kBits) {
      const float any = std::bit_cast<float>(static_cast<uint32_t>(random.bits()));
      value = std::fabs(any) <= largest ? any : 0;  // 0 for NaN
    } else if (kind == Kind::kDenormal) {
      value *= 1e-40;
    } else if (kind == Kind::kOutliers && column % 16 == 0) {
      value *= 1e4;
    } else if (kind == Kind::kZeroBlocks && column / 32 % 2 == 1) {
      value = 0;
    } else if (kind == Kind::kCoarse) {
      value = std::round(value * 4) / 8;
    }
    values[static_cast<size_t>(i)] = static_cast<float>(std::clamp(value, -largest, largest));
  }
  return values;
}

}  // namespace gemlet::check
