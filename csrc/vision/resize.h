// Resizes images of 8-bit RGB in the same way as torchvision with antialiasing: two passes with integer weights, and a
// rounding to 8 bits between them. Every level is the same as torchvision's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gemlet::vision {

enum class Filter : uint8_t { kBilinear, kBicubic };

struct Image {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> levels;  // [height, width, 3]
};

// `levels` is [height, width, 3]. Every size, and every product of a height and a width, is 1 to kMostPixels. Throws
// kInvalidRequest for other sizes.
inline constexpr int64_t kMostPixels = int64_t{1} << 28;
Image resize(const uint8_t* levels, int64_t height, int64_t width, int64_t new_height, int64_t new_width,
             Filter filter);

}  // namespace gemlet::vision
