#include "engine/logit_row.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/fork_mutex.h"

namespace gemlet {
namespace {

constexpr size_t kLogitGroup = 32;  // logits
constexpr size_t kWidth = 8;        // lanes of the loops
constexpr size_t kAhead = 256;      // logits; those of other threads come from far
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// e^x for x <= 0, with a relative error below 2e-7; below -87 a number near 0. It has no branch.
inline float exp_of(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  x = x > -87.0f ? x : -87.0f;
  const float shifted = x * kLog2E + kToInteger;
  const float n = shifted - kToInteger;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23));
}

}  // namespace

void LogitRow::read(std::span<const float> logits) {
  logits_ = logits;
  int32_t bad[kWidth] = {};  // stays 0 unless a NaN passes
  group_peaks_.resize((logits.size() + kLogitGroup - 1) / kLogitGroup);
  for (size_t group = 0; group < group_peaks_.size(); ++group) {
    const float* const at = logits.data() + group * kLogitGroup;
    const size_t count = std::min(kLogitGroup, logits.size() - group * kLogitGroup);
    for (size_t i = 0; i < kLogitGroup; i += 16) __builtin_prefetch(at + i + kAhead);
    float peak[kWidth];
    std::fill_n(peak, kWidth, -kInfinity);
    const auto look = [&](size_t lane, float logit) {
      peak[lane] = logit > peak[lane] ? logit : peak[lane];
      bad[lane] |= logit == logit ? 0 : 1;
    };
    if (count == kLogitGroup) {
      for (size_t i = 0; i < kLogitGroup; i += kWidth) {
        for (size_t lane = 0; lane < kWidth; ++lane) look(lane, at[i + lane]);
      }
    } else {
      for (size_t i = 0; i < count; ++i) look(i % kWidth, at[i]);
    }
    for (size_t width = kWidth / 2; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) peak[i] = std::max(peak[i], peak[i + width]);
    }
    group_peaks_[group] = peak[0];
  }
  largest_ = group_peaks_.empty() ? -kInfinity : *std::max_element(group_peaks_.begin(), group_peaks_.end());
  if (largest_ == kInfinity || std::any_of(bad, bad + kWidth, [](int32_t b) { return b != 0; })) {
    fail(ErrorCode::kTensor, "the logits hold NaN or infinity: the computation overflowed; the weights may be damaged");
  }
}

int32_t LogitRow::likeliest() const {
  const auto group = std::find(group_peaks_.begin(), group_peaks_.end(), largest_) - group_peaks_.begin();
  const auto from = logits_.begin() + group * static_cast<int64_t>(kLogitGroup);
  return static_cast<int32_t>(std::find(from, logits_.end(), largest_) - logits_.begin());
}

// The peaks of `count` groups are `count` logits.
float LogitRow::rank_floor(size_t count) {
  if (count > group_peaks_.size()) return -kInfinity;
  if (count == 0) return kInfinity;
  ranked_peaks_ = group_peaks_;
  const auto at = ranked_peaks_.begin() + static_cast<int64_t>(count - 1);
  std::nth_element(ranked_peaks_.begin(), at, ranked_peaks_.end(), std::greater<>());
  return *at;
}

void LogitRow::collect(float floor, std::vector<Entry>& found) const {
  found.clear();
  for (size_t group = 0; group < group_peaks_.size(); ++group) {
    if (group_peaks_[group] < floor) continue;
    for (size_t id = group * kLogitGroup; id < std::min(logits_.size(), (group + 1) * kLogitGroup); ++id) {
      if (logits_[id] >= floor) found.push_back({logits_[id], static_cast<int32_t>(id)});
    }
  }
}

double LogitRow::exp_sum(double scale) const {
  constexpr size_t kStretch = 4096;  // this many are added in float32
  const float factor = static_cast<float>(std::min(scale, 1e30));
  double sum = 0;
  for (size_t begin = 0; begin < logits_.size(); begin += kStretch) {
    const std::span<const float> stretch = logits_.subspan(begin, std::min(kStretch, logits_.size() - begin));
    const float* const data = stretch.data();
    float sums[kWidth] = {};
    size_t i = 0;
    for (; i + kWidth <= stretch.size(); i += kWidth) {
      for (size_t lane = 0; lane < kWidth; ++lane) sums[lane] += exp_of((data[i + lane] - largest_) * factor);
    }
    for (; i < stretch.size(); ++i) sums[0] += exp_of((data[i] - largest_) * factor);
    for (const float part : sums) sum += static_cast<double>(part);
  }
  return sum;
}

void LogitRow::leave_torn_behind() {
  leave_behind(group_peaks_);
  leave_behind(ranked_peaks_);
}

}  // namespace gemlet
