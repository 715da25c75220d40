// The kernels of one tier as a table of functions. The .list files name every kernel once; this table is made from
// them.
#pragma once

#include <string_view>
#include <vector>

#include "base/cpu_features.h"
#include "kernels/attention/attention.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rowwise/rowwise.h"

namespace gemlet::kernels {

// Every operation once.
#define GEMLET_OPERATIONS(X) \
  X(quantize_i8)             \
  X(matmul_f32_f32)          \
  X(matmul_f32_bf16)         \
  X(matmul_i8_q8)            \
  X(matmul_i8_q4)            \
  X(kv_store_f32)            \
  X(kv_store_bf16)           \
  X(attention_f32)           \
  X(attention_bf16)          \
  X(rms_norm)                \
  X(rms_norm_add)            \
  X(add)                     \
  X(gelu_mul)                \
  X(softcap)                 \
  X(rope)                    \
  X(exp_sum)                 \
  X(row_max)

struct KernelTable {
#define GEMLET_MEMBER(operation) operation##_fn* operation = nullptr;
  GEMLET_OPERATIONS(GEMLET_MEMBER)
#undef GEMLET_MEMBER
};

struct KernelEntry {
  std::string_view operation;
  Tier tier;
};

// All kernels compiled into this library, in the order of the lists.
const std::vector<KernelEntry>& kernel_entries();

// The table of `tier`: for each operation the kernel of that tier, or of the next lower one that has it.
KernelTable kernels_for(Tier tier);

// Which tier kernels_for(tier) takes `operation` from.
Tier resolved_tier(std::string_view operation, Tier tier);

}  // namespace gemlet::kernels
