// The loop of the peak measurements. It has kChains independent sums, so that the instructions overlap.
#pragma once

#include "kernels/peak/peak.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

// step(sum, factor) is one instruction, which does `products` multiply-adds.
template <int kChains, typename V, typename Factor, typename Step>
inline int64_t peak(int64_t count, int64_t products, Factor factor, Step step) {
  V sums[kChains] = {};
  int64_t done = 0;
  for (; done < count; done += kChains * products) {
#pragma GCC unroll 16
    for (int chain = 0; chain < kChains; ++chain) {
      __asm__("" : "+v"(factor));  // keeps the compiler from computing the product in advance
      sums[chain] = step(sums[chain], factor);
      __asm__ volatile("" : "+v"(sums[chain]));  // keeps the compiler from removing the sum
    }
  }
  return done;
}

}  // namespace
}  // namespace gemlet::kernels
