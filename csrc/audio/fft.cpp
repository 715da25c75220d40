#include "audio/fft.h"

#include <cmath>

namespace gemlet {

RealFft::RealFft(int64_t length)
    : half_(length / 2),
      twiddles_(static_cast<size_t>(half_)),
      order_(static_cast<size_t>(half_)),
      work_(static_cast<size_t>(half_)) {
  const double step = -2 * 3.14159265358979323846 / static_cast<double>(length);
  for (int64_t k = 0; k < half_; ++k) {
    const double angle = step * static_cast<double>(k);
    twiddles_[static_cast<size_t>(k)] = {std::cos(angle), std::sin(angle)};
  }
  for (int64_t i = 0; i < half_; ++i) {  // the bits of i in reverse
    int64_t reversed = 0;
    for (int64_t bit = 1; bit < half_; bit *= 2) reversed = 2 * reversed + ((i & bit) ? 1 : 0);
    order_[static_cast<size_t>(i)] = reversed;
  }
}

// Even and odd samples are the real and imaginary parts of a complex signal of half the length.
void RealFft::transform(const double* in, std::complex<double>* out) {
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  for (int64_t i = 0; i < half_; ++i) {
    const int64_t from = order_[at(i)];
    work_[at(i)] = {in[2 * from], in[2 * from + 1]};
  }
  for (int64_t size = 1; size < half_; size *= 2) {
    const int64_t stride =
        half_ / size;  // the step in twiddles_, which has the factors of a transform of 2 * half_ points
    for (int64_t block = 0; block < half_; block += 2 * size) {
      for (int64_t j = 0; j < size; ++j) {
        const std::complex<double> w = twiddles_[at(j * stride)];
        const std::complex<double> a = work_[at(block + j)], b = work_[at(block + j + size)];
        const std::complex<double> turned(b.real() * w.real() - b.imag() * w.imag(),
                                          b.real() * w.imag() + b.imag() * w.real());
        work_[at(block + j)] = a + turned;
        work_[at(block + j + size)] = a - turned;
      }
    }
  }
  for (int64_t k = 0; k <= half_; ++k) {
    const std::complex<double> a = work_[at(k % half_)], b = std::conj(work_[at((half_ - k) % half_)]);
    const std::complex<double> even = (a + b) * 0.5, odd = (a - b) * 0.5;  // odd is multiplied by i
    const std::complex<double> w = k < half_ ? twiddles_[at(k)] : std::complex<double>(-1, 0);
    out[k] = even + std::complex<double>(odd.imag() * w.real() + odd.real() * w.imag(),
                                         odd.imag() * w.imag() - odd.real() * w.real());
  }
}

}  // namespace gemlet
