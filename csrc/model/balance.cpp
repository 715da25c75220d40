#include "model/balance.h"

#include <algorithm>
#include <cmath>

namespace gemlet {
namespace {

constexpr double kLeast = 1e-2;  // the least size of a channel, as a share of the largest one

// The size of a norm's weights for each pair of lanes, at least kLeast of the largest; ones if that is not a number.
std::vector<double> pair_sizes(std::span<const float> norm) {
  const size_t half = norm.size() / 2;
  std::vector<double> sizes(half);
  for (size_t i = 0; i < half; ++i) sizes[i] = std::hypot(norm[i], norm[i + half]);
  const double largest = half > 0 ? *std::max_element(sizes.begin(), sizes.end()) : 0.0;
  const bool usable = largest > 0 && std::isfinite(largest);
  for (double& size : sizes) size = usable ? std::max(size / largest, kLeast) : 1.0;
  return sizes;
}

}  // namespace

std::vector<float> key_factors(std::span<const float> k_norm, std::span<const float> q_norm, KvFormat format) {
  const std::vector<double> keys = pair_sizes(k_norm), queries = pair_sizes(q_norm);
  const size_t half = keys.size();
  std::vector<float> factors(k_norm.size(), 1.0f);
  for (size_t i = 0; i < half; ++i) {
    const double factor = format == KvFormat::kInt4 ? std::sqrt(keys[i] / queries[i]) : std::pow(keys[i], 0.75);
    factors[i] = factors[i + half] = static_cast<float>(factor);
  }
  return factors;
}

}  // namespace gemlet
