// Reading rows of int8 activations.
#pragma once

#include <stdint.h>

namespace gemlet::kernels {
namespace {

template <typename Number>
Number number_at(const uint8_t* p) {
  Number number;
  __builtin_memcpy(&number, p, sizeof number);
  return number;
}

// Addresses up to 8 rows of x with 4 registers. Compilers would keep a pointer for each row and run out of registers.
template <int R>
struct RowPointers {
  const uint8_t* low;   // row 0
  const uint8_t* high;  // row 4
  int64_t stride;
  int64_t stride3;

  RowPointers(const uint8_t* first, int64_t row_stride)
      : low(first), high(first + 4 * row_stride), stride(row_stride), stride3(3 * row_stride) {
    __asm__("" : "+r"(high), "+r"(stride3));
  }
  const uint8_t* operator()(int r) const {
    const uint8_t* const base = r < 4 ? low : high;
    return r % 4 == 3 ? base + stride3 : base + r % 4 * stride;
  }
  void advance(int64_t bytes) {
    low += bytes;
    if (R > 4) high += bytes;
    __asm__("" : "+r"(low), "+r"(high));
  }
};

}  // namespace
}  // namespace gemlet::kernels
