// The types in which files store tensors: floats, the blocks of GGUF, and integers whose scales are in another tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace gemlet {

// X(identifier, name, values per block, bytes per block). i8, i4 and i2 are integers with one scale for a row, or one
// for each of several equal parts of a row. A byte holds two i4, stored with 8 added, or four i2, stored with 2 added;
// the first of them is in the lowest bits. i4x32 is i4 with a scale for each 32 values.
#define GEMLET_SOURCE_TYPES(X) \
  X(F32, f32, 1, 4)            \
  X(Bf16, bf16, 1, 2)          \
  X(F16, f16, 1, 2)            \
  X(Q4_0, q4_0, 32, 18)        \
  X(Q4_1, q4_1, 32, 20)        \
  X(Q5_0, q5_0, 32, 22)        \
  X(Q5_1, q5_1, 32, 24)        \
  X(Q8_0, q8_0, 32, 34)        \
  X(Q2_K, q2_k, 256, 84)       \
  X(Q3_K, q3_k, 256, 110)      \
  X(Q4_K, q4_k, 256, 144)      \
  X(Q5_K, q5_k, 256, 176)      \
  X(Q6_K, q6_k, 256, 210)      \
  X(Iq4Nl, iq4_nl, 32, 18)     \
  X(Iq4Xs, iq4_xs, 256, 136)   \
  X(I8, i8, 1, 1)              \
  X(I4, i4, 2, 1)              \
  X(I2, i2, 4, 1)              \
  X(I4x32, i4x32, 32, 16)

enum class SourceType : uint8_t {
#define GEMLET_DECLARE_SOURCE_TYPE(id, name, values, bytes) k##id,
  GEMLET_SOURCE_TYPES(GEMLET_DECLARE_SOURCE_TYPE)
#undef GEMLET_DECLARE_SOURCE_TYPE
};

bool has_own_scales(SourceType type);  // i8, i4, i2, i4x32
std::string_view source_type_name(SourceType type);
std::optional<SourceType> source_type_from_name(std::string_view name);
int64_t source_block_values(SourceType type);
int64_t source_block_bytes(SourceType type);
// Bytes of `values` values, which must fill whole blocks.
int64_t source_bytes(SourceType type, int64_t values);

}  // namespace gemlet
