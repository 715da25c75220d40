// The definition of the row operations.
#include <math.h>

#include "kernels/rowwise/rowwise.h"

namespace gemlet::kernels::scalar {
namespace {

float inverse_rms(const float* x, float eps, int64_t dim) {
  double sum = 0.0;
  for (int64_t i = 0; i < dim; ++i) sum += static_cast<double>(x[i]) * x[i];
  return 1.0f / sqrtf(static_cast<float>(sum / static_cast<double>(dim)) + eps);
}

}  // namespace

void rms_norm(const float* x, const float* weight, float eps, int64_t dim, float* out) {
  const float inverse = inverse_rms(x, eps, dim);
  for (int64_t i = 0; i < dim; ++i) out[i] = x[i] * inverse * (weight ? weight[i] : 1.0f);
}

void rms_norm_add(const float* x, const float* weight, float eps, int64_t dim, float* residual) {
  const float inverse = inverse_rms(x, eps, dim);
  for (int64_t i = 0; i < dim; ++i) residual[i] += x[i] * inverse * (weight ? weight[i] : 1.0f);
}

void add(const float* x, int64_t dim, float* y) {
  for (int64_t i = 0; i < dim; ++i) y[i] += x[i];
}

void gelu_mul(const float* gate, const float* up, int64_t dim, float* out) {
  for (int64_t i = 0; i < dim; ++i) {
    const float g = gate[i];
    out[i] = 0.5f * g * (1.0f + tanhf(0.7978845608f * (g + 0.044715f * g * g * g))) * up[i];
  }
}

void exact_gelu_mul(const float* gate, const float* up, int64_t dim, float* out) {
  for (int64_t i = 0; i < dim; ++i) out[i] = 0.5f * gate[i] * erfcf(gate[i] * -0.7071067812f) * up[i];
}

void sigmoid_mul(const float* gate, const float* x, int64_t dim, float* out) {
  for (int64_t i = 0; i < dim; ++i) out[i] = x[i] / (1.0f + expf(-gate[i]));
}

void softcap(float cap, int64_t dim, float* x) {
  for (int64_t i = 0; i < dim; ++i) x[i] = cap * tanhf(x[i] / cap);
}

void rope(const float* cosines, const float* sines, float scale, int64_t dim, float* x) {
  for (int64_t i = 0; i < dim / 2; ++i) {
    const float a = x[i], b = x[i + dim / 2];
    x[i] = (a * cosines[i] - b * sines[i]) * scale;
    x[i + dim / 2] = (b * cosines[i] + a * sines[i]) * scale;
  }
}

float row_max(const float* x, int64_t dim) {
  float largest = x[0];
  for (int64_t i = 1; i < dim; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

}  // namespace gemlet::kernels::scalar
