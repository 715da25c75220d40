#include "base/float_bits.h"
#include "kernels/peak/peak.h"

namespace gemlet::kernels::scalar {
namespace {

// Independent sums hide the latency. Because of `volatile` the compiler neither knows the factor nor removes the sums.
template <typename Sum, typename Number>
int64_t peak(int64_t count, Number one, Sum (*value)(Number)) {
  constexpr int64_t kSums = 16;
  Sum sums[kSums] = {};
  volatile Number factor = one;
  int64_t done = 0;
  for (; done < count; done += kSums) {
    const Sum x = value(factor);
    for (Sum& sum : sums) sum = sum * x + 1;
  }
  [[maybe_unused]] volatile Sum kept = 0;
  for (const Sum& sum : sums) kept = sum;
  return done;
}

}  // namespace

int64_t peak_f32(int64_t count) {
  return peak<float, float>(count, 1.0f, [](float x) { return x; });
}
int64_t peak_bf16(int64_t count) {
  return peak<float, uint16_t>(count, f32_to_bf16(1.0f), [](uint16_t x) { return bf16_to_f32(x); });
}
int64_t peak_i8(int64_t count) {
  return peak<uint32_t, int8_t>(count, 1, [](int8_t x) { return static_cast<uint32_t>(x); });
}

}  // namespace gemlet::kernels::scalar
