#include "model/balance.h"

#include <algorithm>
#include <cmath>

namespace gemlet {

std::vector<float> key_factors(std::span<const float> k_norm) {
  constexpr double kLeast = 1e-2;  // share of the largest: channels that matter less are left that much smaller
  constexpr double kPower = 0.75;
  const size_t half = k_norm.size() / 2;
  std::vector<double> sizes(half);
  for (size_t i = 0; i < half; ++i) sizes[i] = std::hypot(k_norm[i], k_norm[i + half]);
  const double largest = half > 0 ? *std::max_element(sizes.begin(), sizes.end()) : 0.0;
  std::vector<float> factors(k_norm.size(), 1.0f);
  if (!(largest > 0) || !std::isfinite(largest)) return factors;
  for (size_t i = 0; i < half; ++i) {
    factors[i] = factors[i + half] = static_cast<float>(std::pow(std::max(sizes[i] / largest, kLeast), kPower));
  }
  return factors;
}

}  // namespace gemlet
