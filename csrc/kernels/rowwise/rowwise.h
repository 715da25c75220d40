// Operations on one row of floats. The result depends only on that row.
#pragma once

#include <stdint.h>

namespace gemlet::kernels {

// out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]. If `weight` is null, all weights are 1. out may be x.
using rms_norm_fn = void(const float* x, const float* weight, float eps, int64_t dim, float* out);
// residual[i] += x[i] / sqrt(mean(x^2) + eps) * weight[i]
using rms_norm_add_fn = void(const float* x, const float* weight, float eps, int64_t dim, float* residual);
// y[i] += x[i]
using add_fn = void(const float* x, int64_t dim, float* y);
// out[i] = gelu_tanh(gate[i]) * up[i] with gelu_tanh(g) = g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))). out may be
// gate.
using gelu_mul_fn = void(const float* gate, const float* up, int64_t dim, float* out);
// out[i] = gelu(gate[i]) * up[i] with gelu(g) = g/2 (1 + erf(g / sqrt(2))). gelu_tanh(g) is an approximation of
// gelu(g).
using exact_gelu_mul_fn = void(const float* gate, const float* up, int64_t dim, float* out);
// out[i] = x[i] / (1 + e^-gate[i]). out may be x or gate.
using sigmoid_mul_fn = void(const float* gate, const float* x, int64_t dim, float* out);
// x[i] = cap * tanh(x[i] / cap)
using softcap_fn = void(float cap, int64_t dim, float* x);
// Rotates each pair (x[i], x[i + dim/2]) by the angle with cosines[i] and sines[i] ([dim/2]), then multiplies by
// `scale`.
using rope_fn = void(const float* cosines, const float* sines, float scale, int64_t dim, float* x);
// The largest x[i].
using row_max_fn = float(const float* x, int64_t dim);

}  // namespace gemlet::kernels
