#include "kernels/registry.h"

namespace gemlet::kernels {

// Declare every kernel in its tier's namespace.
#define KERNEL(operation, tier) \
  namespace tier {              \
  operation##_fn operation;     \
  }
#include "kernels/attention/attention.list"
#include "kernels/matmul/matmul.list"
#include "kernels/rowwise/rowwise.list"
#undef KERNEL

namespace {
namespace tiers {
constexpr Tier scalar = Tier::kScalar;
[[maybe_unused]] constexpr Tier avx2 = Tier::kAvx2;
[[maybe_unused]] constexpr Tier avx512vnni = Tier::kAvx512Vnni;
}  // namespace tiers
}  // namespace

const std::vector<KernelEntry>& kernel_entries() {
  static const std::vector<KernelEntry> entries = {
#define KERNEL(operation, tier) {#operation, tiers::tier},
#include "kernels/attention/attention.list"
#include "kernels/matmul/matmul.list"
#include "kernels/rowwise/rowwise.list"
#undef KERNEL
  };
  return entries;
}

KernelTable kernels_for(Tier tier) {
  KernelTable table;
  // Within a list tiers rise, so the last entry that fits wins.
#define KERNEL(operation, kernel_tier) \
  if (tiers::kernel_tier <= tier) table.operation = kernel_tier::operation;
#include "kernels/attention/attention.list"
#include "kernels/matmul/matmul.list"
#include "kernels/rowwise/rowwise.list"
#undef KERNEL
  return table;
}

Tier resolved_tier(std::string_view operation, Tier tier) {
  Tier found = Tier::kScalar;
  for (const KernelEntry& entry : kernel_entries()) {
    if (entry.operation == operation && entry.tier <= tier) found = entry.tier;
  }
  return found;
}

}  // namespace gemlet::kernels
