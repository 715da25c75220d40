// Sizes of launches that several files of the backend use.
#pragma once

#include <cstdint>

namespace gemlet::cuda {

inline constexpr int kThreads = 256;             // threads of a block that works on numbers or on a row
inline constexpr int64_t kReduceBytes = 40 * 4;  // shared memory for block_sum()

}  // namespace gemlet::cuda
