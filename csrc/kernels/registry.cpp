#include "kernels/registry.h"

#include <cstring>

namespace gemlet::kernels {

// Declares every kernel in the namespace of its tier.
#define KERNEL(operation, tier) \
  namespace tier {              \
  operation##_fn operation;     \
  }
#include "kernels/attention/attention.list"
#include "kernels/matmul/matmul.list"
#include "kernels/peak/peak.list"
#include "kernels/rowwise/rowwise.list"
#undef KERNEL

namespace {
namespace tiers {
#define GEMLET_TIER_CONSTANT(id, name, contained) [[maybe_unused]] constexpr Tier name = Tier::k##id;
GEMLET_TIERS(GEMLET_TIER_CONSTANT)
#undef GEMLET_TIER_CONSTANT
}  // namespace tiers
}  // namespace

const std::vector<KernelEntry>& kernel_entries() {
  static const std::vector<KernelEntry> entries = {
#define KERNEL(operation, tier) {#operation, tiers::tier},
#include "kernels/attention/attention.list"
#include "kernels/matmul/matmul.list"
#include "kernels/peak/peak.list"
#include "kernels/rowwise/rowwise.list"
#undef KERNEL
  };
  return entries;
}

KernelTable kernels_for(Tier tier) {
  KernelTable table;
  // In a list, a tier comes after all tiers that it contains, so the last entry that fits is the best.
#define KERNEL(operation, kernel_tier) \
  if (tier_includes(tier, tiers::kernel_tier)) table.operation = kernel_tier::operation;
#include "kernels/attention/attention.list"
#include "kernels/matmul/matmul.list"
#include "kernels/peak/peak.list"
#include "kernels/rowwise/rowwise.list"
#undef KERNEL
  return table;
}

Tier resolved_tier(std::string_view operation, Tier tier) {
  Tier found = Tier::kScalar;
  for (const KernelEntry& entry : kernel_entries()) {
    if (entry.operation == operation && tier_includes(tier, entry.tier)) found = entry.tier;
  }
  return found;
}

KernelTable with_float_activations(KernelTable table) {
  const KernelTable definitions = kernels_for(Tier::kScalar);  // matmul_for() skips these
  for (const MatmulOperation& operation : kMatmuls) {
    const bool floats = operation.weights == Format::kBf16 || operation.weights == Format::kBf12;
    if (floats && operation.activations != Activations::kF32) {
      table.*operation.kernel = definitions.*operation.kernel;
    }
  }
  return table;
}

KernelTable with_exact_batches(KernelTable table) {
  const KernelTable definitions = kernels_for(Tier::kScalar);  // matmul_for() skips these
  for (const MatmulOperation& operation : kMatmuls) {
    if (operation.activations == Activations::kTiles && operation.least_rows > 1) {
      table.*operation.kernel = definitions.*operation.kernel;
    }
  }
  return table;
}

const MatmulOperation& matmul_for(const KernelTable& table, const Matrix& weight, int64_t rows) {
  static const KernelTable definitions = kernels_for(Tier::kScalar);
  const MatmulOperation* choice = nullptr;
  for (const MatmulOperation& operation : kMatmuls) {
    const bool fixed = operation.activations == Activations::kS8;
    const bool wanted = row_bits(weight.format) > 0 && weight.rounding.input > 0;
    if (operation.weights != weight.format || fixed != wanted) continue;
    choice = &operation;
    const bool vectorized = table.*operation.kernel != definitions.*operation.kernel;
    if (vectorized && rows >= operation.least_rows) break;
  }
  return *choice;
}

void prepare_row(const KernelTable& table, const MatmulOperation& operation, const float* x, int64_t cols, uint8_t* out,
                 float scale) {
  switch (operation.activations) {
    case Activations::kF32:
      std::memcpy(out, x, static_cast<size_t>(cols) * sizeof(float));
      return;
    case Activations::kI8:
      return table.quantize_i8({x, cols, padded_cols(operation.weights, cols),
                                has_minimum(operation.weights) ? 1 : zero_point(operation.weights),
                                operation.weights == Format::kQ4, operation.weights == Format::kQ6k, out});
    case Activations::kS8:
      return table.quantize_s8({x, cols, padded_cols(operation.weights, cols), scale, out});
    case Activations::kBf16:
    case Activations::kTiles: {
      const int64_t padded = activation_row_bytes(operation.activations, padded_cols(operation.weights, cols)) / 2;
      return table.round_bf16(
          {x, cols, padded, operation.activations == Activations::kTiles ? kTileBytes : kLineBytes, out});
    }
  }
}

}  // namespace gemlet::kernels
