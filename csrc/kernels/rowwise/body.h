// The vector body of the row operations, compiled once for each tier. Memory bandwidth limits the speed of all row
// operations.
#pragma once

#include "kernels/rowwise/rowwise.h"
#include "kernels/simd/vector.h"

namespace gemlet::kernels {
namespace {

// Calls fn(offset, count) for every vector of the row. count is kLanes, except in the last call.
template <typename Fn>
inline void for_each_vector(int64_t dim, Fn fn) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) fn(i, (int64_t)kLanes);
  if (i < dim) fn(i, dim - i);
}
inline VF get(const float* p, int64_t count) { return count == kLanes ? load(p) : load_some(p, count); }
inline void put(float* p, VF v, int64_t count) {
  if (count == kLanes) {
    store(p, v);
  } else {
    store_some(p, v, count);
  }
}

inline float inverse_rms(const float* x, float eps, int64_t dim) {
  VF sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
    const VF a = load(x + i), b = load(x + i + kLanes);
    sums[0] += a * a;
    sums[1] += b * b;
  }
  for_each_vector(dim - i, [&](int64_t j, int64_t n) {
    const VF a = get(x + i + j, n);
    sums[0] += a * a;
  });
  return 1.0f / __builtin_sqrtf(sum_lanes(sums[0] + sums[1]) / (float)dim + eps);
}

}  // namespace

namespace GEMLET_TIER {

void rms_norm(const float* x, const float* weight, float eps, int64_t dim, float* out) {
  const float inverse = inverse_rms(x, eps, dim);
  for_each_vector(dim, [&](int64_t i, int64_t n) {
    const VF y = get(x + i, n) * inverse;
    put(out + i, weight ? y * get(weight + i, n) : y, n);
  });
}

void rms_norm_add(const float* x, const float* weight, float eps, int64_t dim, float* residual) {
  const float inverse = inverse_rms(x, eps, dim);
  for_each_vector(dim, [&](int64_t i, int64_t n) {
    const VF y = get(x + i, n) * inverse;
    put(residual + i, get(residual + i, n) + (weight ? y * get(weight + i, n) : y), n);
  });
}

void add(const float* x, int64_t dim, float* y) {
  for_each_vector(dim, [&](int64_t i, int64_t n) { put(y + i, get(y + i, n) + get(x + i, n), n); });
}

// gelu_tanh(g) = g / (1 + e^(-2u)) with u = sqrt(2/pi) (g + 0.044715 g^3). This form has no cancellation at either end.
void gelu_mul(const float* gate, const float* up, int64_t dim, float* out) {
  for_each_vector(dim, [&](int64_t i, int64_t n) {
    const VF g = get(gate + i, n);
    const VF twice_u = g * (1.5957691216f + 0.0713548163f * g * g);
    put(out + i, g / (1.0f + exp(-twice_u)) * get(up + i, n), n);
  });
}

// gelu(g) = max(g, 0) - |g| Q(|g|), where Q is the tail of the normal distribution: e^(-g^2/2) times a polynomial in
// 1 / (1 + 0.2316419 |g|), within 7.5e-8 (Abramowitz and Stegun, 26.2.17). There is no cancellation for g < 0.
void exact_gelu_mul(const float* gate, const float* up, int64_t dim, float* out) {
  for_each_vector(dim, [&](int64_t i, int64_t n) {
    const VF g = get(gate + i, n), size = abs(g);
    const VF t = 1.0f / (1.0f + 0.2316419f * size);
    const VF terms =
        t * (0.1274147960f + t * (-0.1422483683f + t * (0.7107068705f + t * (-0.7265760130f + t * 0.5307027150f))));
    put(out + i, (max(g, splat(0.0f)) - size * (terms * exp(-0.5f * g * g))) * get(up + i, n), n);
  });
}

void sigmoid_mul(const float* gate, const float* x, int64_t dim, float* out) {
  for_each_vector(dim, [&](int64_t i, int64_t n) {
    const VF e = exp(get(gate + i, n));  // the value of exp() is at most e^88
    put(out + i, get(x + i, n) * (e / (1.0f + e)), n);
  });
}

void softcap(float cap, int64_t dim, float* x) {
  const float inverse = 1.0f / cap;
  for_each_vector(dim, [&](int64_t i, int64_t n) { put(x + i, cap * tanh(get(x + i, n) * inverse), n); });
}

void rope(const float* cosines, const float* sines, float scale, int64_t dim, float* x) {
  float* high = x + dim / 2;
  for_each_vector(dim / 2, [&](int64_t i, int64_t n) {
    const VF a = get(x + i, n), b = get(high + i, n), c = get(cosines + i, n), s = get(sines + i, n);
    put(x + i, (a * c - b * s) * scale, n);
    put(high + i, (b * c + a * s) * scale, n);
  });
}

float row_max(const float* x, int64_t dim) {
  VF largest = splat(x[0]);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) largest = max(largest, load(x + i));
  float result = max_lanes(largest);
  for (; i < dim; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

}  // namespace GEMLET_TIER
}  // namespace gemlet::kernels
