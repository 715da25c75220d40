#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdlib>

#include "formats/quantize.h"

namespace gemlet {
namespace {

// Bytes of activations that one pass over the weights keeps in L2.
constexpr int64_t kActivationBytes = 512 * 1024;

constexpr size_t kMaxTargets = 8;

int32_t zero_point(Format format) { return format == Format::kQ4 ? 8 : format == Format::kQ8 ? 128 : 0; }

}  // namespace

CpuBackend::CpuBackend(Tier tier, int threads) : tier_(tier), pool_(threads), kernels_(kernels::kernels_for(tier)) {}

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  const TierChoice choice = choose_tier(detect_cpu(), std::getenv("GEMLET_CPU"));
  return std::make_unique<CpuBackend>(choice.tier, threads);
}

float* CpuBackend::scratch(AlignedBuffer& buffer, int64_t floats) {
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (buffer.size() < bytes) buffer = AlignedBuffer(bytes);
  return buffer.as<float>();
}

void CpuBackend::embed(const Matrix& table, std::span<const int32_t> ids, float scale, float* out) {
  for_each_row(static_cast<int64_t>(ids.size()), table.cols, [&](int64_t row) {
    float* at = out + row * table.cols;
    unpack_row(table, ids[static_cast<size_t>(row)], at);
    for (int64_t i = 0; i < table.cols; ++i) at[i] *= scale;
  });
}

void CpuBackend::rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* out) {
  for_each_row(rows, dim, [&](int64_t row) { kernels_.rms_norm(x + row * dim, weight, eps, dim, out + row * dim); });
}

void CpuBackend::add_branch(const float* x, const float* weight, float eps, int64_t rows, int64_t dim, float* residual) {
  for_each_row(rows, dim, [&](int64_t row) {
    if (weight) {
      kernels_.rms_norm_add(x + row * dim, weight, eps, dim, residual + row * dim);
    } else {
      kernels_.add(x + row * dim, dim, residual + row * dim);
    }
  });
}

void CpuBackend::gelu_mul(float* gate, const float* up, int64_t rows, int64_t dim) {
  for_each_row(rows, dim, [&](int64_t row) { kernels_.gelu_mul(gate + row * dim, up + row * dim, dim, gate + row * dim); });
}

void CpuBackend::softcap(float cap, int64_t rows, int64_t dim, float* x) {
  constexpr int64_t kPiece = 4096;  // one row of logits alone is worth splitting
  const int64_t total = rows * dim;
  for_each_row((total + kPiece - 1) / kPiece, kPiece,
               [&](int64_t piece) { kernels_.softcap(cap, std::min(kPiece, total - piece * kPiece), x + piece * kPiece); });
}

void CpuBackend::matmul(const float* x, int64_t rows, std::span<const MatmulTarget> targets) {
  const int64_t cols = targets[0].weight->cols;
  const int32_t zero = zero_point(targets[0].weight->format);
  for (size_t i = 1; i < targets.size(); ++i) {
    // Activations are prepared for one kind of weight at a time.
    if (i == kMaxTargets || zero_point(targets[i].weight->format) != zero) {
      matmul(x, rows, targets.first(i));
      matmul(x, rows, targets.subspan(i));
      return;
    }
  }

  const uint8_t* activations = reinterpret_cast<const uint8_t*>(x);
  int64_t stride = cols * static_cast<int64_t>(sizeof(float));
  int64_t kernel_cols = cols;
  if (zero != 0) {
    kernel_cols = padded_cols(targets[0].weight->format, cols);
    stride = kernels::quantized_row_bytes(kernel_cols);
    uint8_t* out = reinterpret_cast<uint8_t*>(scratch(quantized_, rows * stride / 4));
    for_each_row(rows, cols, [&](int64_t row) {
      kernels_.quantize_i8({x + row * cols, cols, kernel_cols, zero, out + row * stride});
    });
    activations = out;
  }

  // Tasks: all targets' panels in runs of about 64 KB (decode) or a few panels (prefill), times blocks of rows.
  const int64_t row_block = std::clamp<int64_t>(kActivationBytes / stride, 16, 512);
  const size_t count = targets.size();
  int64_t panels_per_task[kMaxTargets], tasks_before[kMaxTargets + 1] = {0};
  for (size_t i = 0; i < count; ++i) {
    const Matrix& weight = *targets[i].weight;
    const int64_t by_bytes = 64 * 1024 / panel_bytes(weight.format, weight.cols);
    panels_per_task[i] = std::clamp<int64_t>(by_bytes, 1, 64);
    const int64_t runs = (weight.panels() + panels_per_task[i] - 1) / panels_per_task[i];
    tasks_before[i + 1] = tasks_before[i] + runs;
  }
  for (int64_t first = 0; first < rows; first += row_block) {
    const int64_t block_rows = std::min(row_block, rows - first);
    pool_.run(tasks_before[count], [&](int64_t task, int) {
      size_t i = 0;
      while (task >= tasks_before[i + 1]) ++i;
      const Matrix& weight = *targets[i].weight;
      const int64_t panel = (task - tasks_before[i]) * panels_per_task[i];
      const int64_t outputs = std::min(panels_per_task[i] * kPanelRows, weight.rows - panel * kPanelRows);
      const kernels::MatmulArgs args = {activations + first * stride,
                                        stride,
                                        block_rows,
                                        weight.panel(panel),
                                        panel_bytes(weight.format, weight.cols),
                                        kernel_cols,
                                        targets[i].y + first * weight.rows + panel * kPanelRows,
                                        weight.rows,
                                        outputs};
      switch (weight.format) {
        case Format::kF32:
          return kernels_.matmul_f32_f32(args);
        case Format::kBf16:
          return kernels_.matmul_f32_bf16(args);
        case Format::kQ8:
          return kernels_.matmul_i8_q8(args);
        case Format::kQ4:
          return kernels_.matmul_i8_q4(args);
      }
    });
  }
}

void CpuBackend::parallel(int64_t tasks, void (*fn)(const void* context, int64_t task), const void* context) {
  pool_.run(tasks, [&](int64_t task, int) { fn(context, task); });
}

}  // namespace gemlet
