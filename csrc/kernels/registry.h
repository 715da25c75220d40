// The kernels of a tier as a table of functions, made from the .list files, which name every kernel once.
#pragma once

#include <string_view>
#include <vector>

#include "base/cpu_features.h"
#include "formats/formats.h"
#include "kernels/attention/attention.h"
#include "kernels/matmul/matmul.h"
#include "kernels/peak/peak.h"
#include "kernels/rowwise/rowwise.h"

namespace gemlet::kernels {

// The list of all operations: X(operation).
#define GEMLET_OPERATIONS(X) \
  X(quantize_i8)             \
  X(round_bf16)              \
  X(matmul_f32_f32)          \
  X(matmul_f32_bf16)         \
  X(matmul_bf16_bf16)        \
  X(matmul_f32_bf12)         \
  X(matmul_bf16_bf12)        \
  X(matmul_i8_q8)            \
  X(matmul_i8_q4)            \
  X(matmul_i8_q5)            \
  X(matmul_i8_q4k)           \
  X(matmul_i8_q5k)           \
  X(matmul_i8_q6k)           \
  X(matmul_f32_w4a16)        \
  X(matmul_tiles_bf16)       \
  X(matmul_tiles_bf12)       \
  X(matmul_tiles_q8)         \
  X(matmul_tiles_q4)         \
  X(matmul_tiles_q5)         \
  X(matmul_tiles_q4k)        \
  X(matmul_tiles_q5k)        \
  X(matmul_tiles_q6k)        \
  X(quantize_s8)             \
  X(round_s8)                \
  X(matmul_f32_r8)           \
  X(matmul_f32_r4)           \
  X(matmul_f32_r2)           \
  X(matmul_s8_r8)            \
  X(matmul_s8_r4)            \
  X(matmul_s8_r2)            \
  X(matmul_s8_tiles_r8)      \
  X(matmul_s8_tiles_r4)      \
  X(matmul_s8_tiles_r2)      \
  X(kv_store_f32)            \
  X(kv_store_bf16)           \
  X(kv_store_int8)           \
  X(kv_store_int4)           \
  X(attention_f32)           \
  X(attention_bf16)          \
  X(attention_int8)          \
  X(attention_int4)          \
  X(rms_norm)                \
  X(rms_norm_add)            \
  X(add)                     \
  X(gelu_mul)                \
  X(exact_gelu_mul)          \
  X(sigmoid_mul)             \
  X(softcap)                 \
  X(rope)                    \
  X(row_max)                 \
  X(peak_f32)                \
  X(peak_bf16)               \
  X(peak_i8)

struct KernelTable {
#define GEMLET_MEMBER(operation) operation##_fn* operation = nullptr;
  GEMLET_OPERATIONS(GEMLET_MEMBER)
#undef GEMLET_MEMBER
};

struct KernelEntry {
  std::string_view operation;
  Tier tier;
};

// All kernels of this build, in the order of the lists.
const std::vector<KernelEntry>& kernel_entries();

// Chooses a kernel for each operation. If `tier` has no kernel for it, the kernel comes from the nearest tier that
// `tier` contains and that has one.
KernelTable kernels_for(Tier tier);

// Returns `table` without the kernels that round activations to bf16. Products with float weights then use float32
// activations.
KernelTable with_float_activations(KernelTable table);

// Returns `table` without the kernels for many rows whose results differ from those for few rows. A matrix unit
// multiplies weights in blocks by activations in bf16, and vectors multiply them by activations in int8.
KernelTable with_exact_batches(KernelTable table);

// Returns the tier from which kernels_for(tier) takes the kernel of `operation`.
Tier resolved_tier(std::string_view operation, Tier tier);

// The matmul kernels by their operands. For a weight format, matmul_for() chooses the first kernel that the tier does
// not take from the scalar definitions and whose least_rows the product has. If there is no such kernel, it chooses the
// last one. Kernels of kS8 are for products whose input is rounded with a fixed scale; the other kernels of these
// formats are for all other products.
struct MatmulOperation {
  std::string_view name;
  Activations activations;
  Format weights;
  int64_t least_rows;
  matmul_fn* KernelTable::* kernel;

  // Whether this is a kernel for a matrix unit. Such a kernel prepares weights for all rows of a task.
  constexpr bool in_tiles() const { return activations == Activations::kTiles || least_rows > 1; }
};
inline constexpr MatmulOperation kMatmuls[] = {
    {"matmul_f32_f32", Activations::kF32, Format::kF32, 1, &KernelTable::matmul_f32_f32},
    {"matmul_tiles_bf16", Activations::kTiles, Format::kBf16, 1, &KernelTable::matmul_tiles_bf16},
    {"matmul_bf16_bf16", Activations::kBf16, Format::kBf16, 1, &KernelTable::matmul_bf16_bf16},
    {"matmul_f32_bf16", Activations::kF32, Format::kBf16, 1, &KernelTable::matmul_f32_bf16},
    {"matmul_tiles_bf12", Activations::kTiles, Format::kBf12, 1, &KernelTable::matmul_tiles_bf12},
    {"matmul_bf16_bf12", Activations::kBf16, Format::kBf12, 1, &KernelTable::matmul_bf16_bf12},
    {"matmul_f32_bf12", Activations::kF32, Format::kBf12, 1, &KernelTable::matmul_f32_bf12},
    {"matmul_tiles_q8", Activations::kTiles, Format::kQ8, kLeastExpandedRows, &KernelTable::matmul_tiles_q8},
    {"matmul_i8_q8", Activations::kI8, Format::kQ8, 1, &KernelTable::matmul_i8_q8},
    {"matmul_tiles_q4", Activations::kTiles, Format::kQ4, kLeastExpandedRows, &KernelTable::matmul_tiles_q4},
    {"matmul_i8_q4", Activations::kI8, Format::kQ4, 1, &KernelTable::matmul_i8_q4},
    {"matmul_f32_w4a16", Activations::kF32, Format::kW4a16, 1, &KernelTable::matmul_f32_w4a16},
    {"matmul_tiles_q5", Activations::kTiles, Format::kQ5, kLeastExpandedRows, &KernelTable::matmul_tiles_q5},
    {"matmul_i8_q5", Activations::kI8, Format::kQ5, 1, &KernelTable::matmul_i8_q5},
    {"matmul_tiles_q4k", Activations::kTiles, Format::kQ4k, kLeastExpandedRows, &KernelTable::matmul_tiles_q4k},
    {"matmul_i8_q4k", Activations::kI8, Format::kQ4k, 1, &KernelTable::matmul_i8_q4k},
    {"matmul_tiles_q5k", Activations::kTiles, Format::kQ5k, kLeastExpandedRows, &KernelTable::matmul_tiles_q5k},
    {"matmul_i8_q5k", Activations::kI8, Format::kQ5k, 1, &KernelTable::matmul_i8_q5k},
    {"matmul_tiles_q6k", Activations::kTiles, Format::kQ6k, kLeastExpandedRows, &KernelTable::matmul_tiles_q6k},
    {"matmul_i8_q6k", Activations::kI8, Format::kQ6k, 1, &KernelTable::matmul_i8_q6k},
    {"matmul_s8_tiles_r8", Activations::kS8, Format::kR8, kLeastTileRows, &KernelTable::matmul_s8_tiles_r8},
    {"matmul_s8_r8", Activations::kS8, Format::kR8, 1, &KernelTable::matmul_s8_r8},
    {"matmul_f32_r8", Activations::kF32, Format::kR8, 1, &KernelTable::matmul_f32_r8},
    {"matmul_s8_tiles_r4", Activations::kS8, Format::kR4, kLeastTileRows, &KernelTable::matmul_s8_tiles_r4},
    {"matmul_s8_r4", Activations::kS8, Format::kR4, 1, &KernelTable::matmul_s8_r4},
    {"matmul_f32_r4", Activations::kF32, Format::kR4, 1, &KernelTable::matmul_f32_r4},
    {"matmul_s8_tiles_r2", Activations::kS8, Format::kR2, kLeastTileRows, &KernelTable::matmul_s8_tiles_r2},
    {"matmul_s8_r2", Activations::kS8, Format::kR2, 1, &KernelTable::matmul_s8_r2},
    {"matmul_f32_r2", Activations::kF32, Format::kR2, 1, &KernelTable::matmul_f32_r2},
};
const MatmulOperation& matmul_for(const KernelTable& table, const Matrix& weight, int64_t rows);

// Converts one row of activations, x [cols], to the form that `operation` takes, padded to the weights' padded_cols.
// `out` is the row's place, activation_offset(). `scale` is for kS8.
void prepare_row(const KernelTable& table, const MatmulOperation& operation, const float* x, int64_t cols, uint8_t* out,
                 float scale = 0.0f);

}  // namespace gemlet::kernels
