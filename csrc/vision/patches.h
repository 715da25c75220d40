// The pixels of an image, patch by patch.
#pragma once

#include <cstdint>
#include <vector>

namespace gemlet::vision {

inline constexpr int64_t kChannels = 3;
inline constexpr int64_t kMlpRows = 512;  // the number of rows whose MLP activations are in memory at a time
inline constexpr int64_t kMostPatches = int64_t{1} << 20;

struct Grid {
  int64_t rows, cols;
};

// Rearranges pixels [rows * size, cols * size, 3] into [rows * cols, size * size * 3], in the order row, column,
// channel.
inline std::vector<float> flat_patches(const float* pixels, Grid grid, int64_t size) {
  std::vector<float> flat;
  flat.reserve(static_cast<size_t>(grid.rows * grid.cols * size * size * kChannels));
  for (int64_t row = 0; row < grid.rows; ++row) {
    for (int64_t col = 0; col < grid.cols; ++col) {
      for (int64_t y = 0; y < size; ++y) {
        const float* const line = pixels + ((row * size + y) * grid.cols + col) * size * kChannels;
        flat.insert(flat.end(), line, line + size * kChannels);
      }
    }
  }
  return flat;
}

}  // namespace gemlet::vision
