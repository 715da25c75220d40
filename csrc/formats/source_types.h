// The types in which files store tensors: floats, and the blocks of GGUF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace gemlet {

// X(identifier, name, values per block, bytes per block)
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
  X(Iq4Xs, iq4_xs, 256, 136)

enum class SourceType : uint8_t {
#define GEMLET_DECLARE_SOURCE_TYPE(id, name, values, bytes) k##id,
  GEMLET_SOURCE_TYPES(GEMLET_DECLARE_SOURCE_TYPE)
#undef GEMLET_DECLARE_SOURCE_TYPE
};

std::string_view source_type_name(SourceType type);
std::optional<SourceType> source_type_from_name(std::string_view name);
int64_t source_block_values(SourceType type);
int64_t source_block_bytes(SourceType type);
// Bytes of `values` values, a multiple of the block's.
int64_t source_bytes(SourceType type, int64_t values);

}  // namespace gemlet
