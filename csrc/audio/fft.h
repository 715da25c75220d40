// The Fourier transform of real signals.
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace gemlet {

class RealFft {
 public:
  explicit RealFft(int64_t length);  // a power of two, 4 or more

  // out [length / 2 + 1] = the transform of `in` [length].
  void transform(const double* in, std::complex<double>* out);

 private:
  int64_t half_;
  std::vector<std::complex<double>> twiddles_;  // e^(-2 pi i k / length), k < length / 2
  std::vector<int64_t> order_;                  // the order in which it reads the inputs
  std::vector<std::complex<double>> work_;
};

}  // namespace gemlet
