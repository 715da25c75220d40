#include "vision/resize.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "vision/patches.h"

namespace gemlet::vision {
namespace {

double weight_at(Filter filter, double x) {
  x = std::fabs(x);
  if (filter == Filter::kBilinear) return std::max(0.0, 1.0 - x);
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return a * (((x - 5) * x + 8) * x - 4);
  return 0;
}

// The weighted sums along an axis. For each output: the first input, the number of inputs, and their weights as
// integers, times 2^precision.
struct Weights {
  std::vector<int64_t> first;   // [outputs]
  std::vector<int64_t> count;   // [outputs]
  std::vector<int64_t> offset;  // [outputs], into values
  std::vector<int32_t> values;
  int precision = 0;
};

Weights make_weights(int64_t inputs, int64_t outputs, Filter filter) {
  const double scale = static_cast<double>(inputs) / static_cast<double>(outputs);
  const double stretch = std::max(scale, 1.0);
  const double support = (filter == Filter::kBilinear ? 1.0 : 2.0) * stretch;
  Weights weights;
  std::vector<double> exact;
  double largest = 0;
  for (int64_t i = 0; i < outputs; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const int64_t low = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t high = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), inputs);
    weights.first.push_back(low);
    weights.count.push_back(high - low);
    weights.offset.push_back(static_cast<int64_t>(exact.size()));
    double sum = 0;
    for (int64_t j = low; j < high; ++j) {
      exact.push_back(weight_at(filter, (static_cast<double>(j) - center + 0.5) / stretch));
      sum += exact.back();
    }
    for (auto at = exact.end() - (high - low); at != exact.end(); ++at) {
      if (sum != 0) *at /= sum;
      largest = std::max(largest, *at);
    }
  }
  // The largest precision with which the largest weight is below 2^15.
  while (weights.precision < 22 && static_cast<int64_t>(0.5 + largest * (1 << (weights.precision + 1))) < (1 << 15)) {
    ++weights.precision;
  }
  const double factor = 1 << weights.precision;
  weights.values.reserve(exact.size());
  for (const double value : exact) {
    weights.values.push_back(static_cast<int32_t>(value * factor + (value < 0 ? -0.5 : 0.5)));
  }
  return weights;
}

uint8_t level_of(int32_t sum, int precision) { return static_cast<uint8_t>(std::clamp(sum >> precision, 0, 255)); }

Image resize_width(const uint8_t* levels, int64_t height, int64_t width, int64_t new_width, Filter filter) {
  const Weights weights = make_weights(width, new_width, filter);
  Image out = {height, new_width, std::vector<uint8_t>(static_cast<size_t>(height * new_width * kChannels))};
  const int32_t half = int32_t{1} << (weights.precision - 1);
  for (int64_t y = 0; y < height; ++y) {
    uint8_t* to = out.levels.data() + y * new_width * kChannels;
    for (size_t i = 0; i < weights.first.size(); ++i) {
      const uint8_t* from = levels + (y * width + weights.first[i]) * kChannels;
      const int32_t* const values = weights.values.data() + weights.offset[i];
      int32_t red = half, green = half, blue = half;
      for (int64_t j = 0; j < weights.count[i]; ++j, from += kChannels) {
        red += values[j] * from[0];
        green += values[j] * from[1];
        blue += values[j] * from[2];
      }
      *to++ = level_of(red, weights.precision);
      *to++ = level_of(green, weights.precision);
      *to++ = level_of(blue, weights.precision);
    }
  }
  return out;
}

Image resize_height(const uint8_t* levels, int64_t height, int64_t width, int64_t new_height, Filter filter) {
  const Weights weights = make_weights(height, new_height, filter);
  const int64_t length = width * kChannels;
  Image out = {new_height, width, std::vector<uint8_t>(static_cast<size_t>(new_height * length))};
  std::vector<int32_t> sums(static_cast<size_t>(length));
  for (size_t i = 0; i < weights.first.size(); ++i) {
    std::fill(sums.begin(), sums.end(), int32_t{1} << (weights.precision - 1));
    for (int64_t j = 0; j < weights.count[i]; ++j) {
      const uint8_t* const line = levels + (weights.first[i] + j) * length;
      const int32_t weight = weights.values[static_cast<size_t>(weights.offset[i] + j)];
      for (size_t x = 0; x < sums.size(); ++x) sums[x] += weight * int32_t{line[x]};
    }
    uint8_t* const to = out.levels.data() + static_cast<int64_t>(i) * length;
    for (size_t x = 0; x < sums.size(); ++x) to[x] = level_of(sums[x], weights.precision);
  }
  return out;
}

void check_sizes(int64_t height, int64_t width) {
  if (height < 1 || width < 1 || height > kMostPixels || width > kMostPixels / height) {
    fail(ErrorCode::kInvalidRequest, "an image of ", height, " x ", width, " pixels, expected 1 to ", kMostPixels,
         " pixels in all");
  }
}

}  // namespace

Image resize(const uint8_t* levels, int64_t height, int64_t width, int64_t new_height, int64_t new_width,
             Filter filter) {
  check_sizes(height, width);
  check_sizes(new_height, new_width);
  check_sizes(height, new_width);  // the size between the two passes
  Image image;
  if (new_width != width) {
    image = resize_width(levels, height, width, new_width, filter);
  } else {
    image = {height, width, std::vector<uint8_t>(levels, levels + height * width * kChannels)};
  }
  if (new_height == height) return image;
  return resize_height(image.levels.data(), height, new_width, new_height, filter);
}

}  // namespace gemlet::vision
