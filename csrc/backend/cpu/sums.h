// Sums of a row in double precision.
#pragma once

#include <array>
#include <cstdint>
#include <numeric>

namespace gemlet {

// The sum of term(x[i]), in independent chains. The order of the additions depends only on dim.
template <typename Term>
double sum_of(const float* x, int64_t dim, const Term& term) {
  constexpr int64_t kChains = 8;
  std::array<double, kChains> chains = {};
  int64_t i = 0;
  for (; i + kChains <= dim; i += kChains) {
    for (int64_t c = 0; c < kChains; ++c) chains[static_cast<size_t>(c)] += term(static_cast<double>(x[i + c]));
  }
  for (; i < dim; ++i) chains[0] += term(static_cast<double>(x[i]));
  return std::accumulate(chains.begin(), chains.end(), 0.0);
}

}  // namespace gemlet
