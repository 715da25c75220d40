#include "audio/resample.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace gemlet {
namespace {

constexpr double kPi = 3.14159265358979323846;
// The low-pass filter of soxr at quality HQ. These numbers are fitted to the response of soxr, with a remaining error
// of 6e-8. kCutoff is in units of the Nyquist frequency of the lower of the two rates, and kHalfWidth in samples at
// that rate.
constexpr double kCutoff = 0.95687178;
constexpr double kHalfWidth = 96.84109;
constexpr double kBeta = 13.042117;    // the parameter of the Kaiser window
constexpr int64_t kMostPhases = 4096;  // phases with stored weights; interpolation between two of them is exact to 1e-7
constexpr int64_t kLanes = 16;         // independent sums, so that additions overlap

// The modified Bessel function of order 0.
double bessel(double x) {
  double sum = 1, term = 1;
  for (int k = 1; term > sum * 1e-17; ++k) {
    const double factor = x / (2 * k);
    term *= factor * factor;
    sum += term;
  }
  return sum;
}

// A low-pass filter for signals. The distance from one sample of the input to the next is 1.
struct Kernel {
  explicit Kernel(double lower_rate)  // the lower of the two rates, in samples of the input
      : cutoff(kCutoff * lower_rate), half_width(kHalfWidth / lower_rate), window_scale(1 / bessel(kBeta)) {}
  double operator()(double t) const {
    const double place = t / half_width;
    if (std::abs(place) >= 1) return 0;
    const double angle = kPi * cutoff * t;
    const double sinc = std::abs(angle) < 1e-9 ? 1 : std::sin(angle) / angle;
    return cutoff * sinc * bessel(kBeta * std::sqrt(1 - place * place)) * window_scale;
  }
  double cutoff, half_width, window_scale;
};

float dot(const float* a, const float* b, int64_t count) {  // count is a multiple of kLanes
  std::array<float, kLanes> sums = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[static_cast<size_t>(lane)] += a[i + lane] * b[i + lane];
  }
  for (int64_t step = kLanes / 2; step > 0; step /= 2) {
    for (int64_t lane = 0; lane < step; ++lane) {
      sums[static_cast<size_t>(lane)] += sums[static_cast<size_t>(lane + step)];
    }
  }
  return sums[0];
}

}  // namespace

int64_t resampled_count(int64_t count, int64_t from, int64_t to) {
  const int64_t common = std::gcd(from, to);
  return (count * (to / common) + from / common - 1) / (from / common);
}

std::vector<float> resample(const std::vector<float>& x, int64_t from, int64_t to, int64_t most) {
  const auto inputs = static_cast<int64_t>(x.size());
  const int64_t outputs = std::min(resampled_count(inputs, from, to), most);
  if (from == to) return {x.begin(), x.begin() + outputs};
  // Output i lies at position i * step / places of the input.
  const int64_t common = std::gcd(from, to);
  const int64_t step = from / common, places = to / common;
  const Kernel kernel(std::min(1.0, static_cast<double>(to) / static_cast<double>(from)));
  const auto reach = static_cast<int64_t>(std::ceil(kernel.half_width));
  const int64_t taps = (2 * reach + kLanes - 1) / kLanes * kLanes;
  // Row p has the weights of the inputs, which begin `reach - 1` before position p / phases. A wide kernel changes
  // slowly, so it needs fewer phases.
  const int64_t enough = std::max<int64_t>(64, kMostPhases * to / std::max(from, to));
  const bool exact = places <= enough;
  const int64_t phases = exact ? places : enough;
  std::vector<float> weights(static_cast<size_t>((phases + 1) * taps));
  for (int64_t phase = 0; phase <= phases; ++phase) {
    const double place = static_cast<double>(phase) / static_cast<double>(phases);
    for (int64_t j = 0; j < 2 * reach; ++j) {
      weights[static_cast<size_t>(phase * taps + j)] =
          static_cast<float>(kernel(static_cast<double>(j - reach + 1) - place));
    }
  }
  const int64_t silence = reach + kLanes;
  std::vector<float> padded(static_cast<size_t>(inputs + 2 * silence + taps));
  std::copy(x.begin(), x.end(), padded.begin() + silence);
  std::vector<float> out(static_cast<size_t>(outputs));
  // soxr rounds the number of samples. The reference fills the remaining samples with silence.
  const int64_t computed = std::min(outputs, (2 * inputs * places + step) / (2 * step));
  for (int64_t i = 0; i < computed; ++i) {
    const int64_t whole = i * step / places, part = i * step % places;
    const float* const at = padded.data() + silence + whole - reach + 1;
    float& sample = out[static_cast<size_t>(i)];
    if (exact) {
      sample = dot(weights.data() + part * taps, at, taps);
    } else {
      const int64_t phase = part * phases / places;
      const float share = static_cast<float>(part * phases % places) / static_cast<float>(places);
      const float here = dot(weights.data() + phase * taps, at, taps);
      const float next = dot(weights.data() + (phase + 1) * taps, at, taps);
      sample = here + share * (next - here);
    }
  }
  return out;
}

}  // namespace gemlet
