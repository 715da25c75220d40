// The sizes of MobileNet-v5, and the number and sizes of the buffers for its activations.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "vision/patches.h"

namespace gemlet::vision {

struct MobileNetBlock {
  enum class Kind : uint8_t {
    kEdge,       // a convolution that expands, and a projection
    kInverted,   // depthwise convolutions around an expansion, and a projection
    kAttention,  // attention over all places, with one head of keys and values
  };
  Kind kind = Kind::kEdge;
  int64_t in_channels = 0, out_channels = 0;
  int64_t inner = 0;          // channels of the expansion
  int64_t start_kernel = 0;   // convolution before the expansion, 0: none; in kEdge, the expansion itself
  int64_t middle_kernel = 0;  // convolution after the expansion, 0: none; in kAttention, of keys and values
  int64_t stride = 1;         // in kAttention, only of keys and values
  int64_t num_heads = 0, head_dim = 0;

  bool attends() const { return kind == Kind::kAttention; }
  int64_t grid_stride() const { return attends() ? 1 : stride; }
  bool adds_input() const { return grid_stride() == 1 && in_channels == out_channels; }
};

struct MobileNetConfig {
  int64_t height = 0, width = 0;  // the size of an image in pixels
  int64_t stem_channels = 0;
  std::vector<std::vector<MobileNetBlock>> stages;  // the last two are fused
  int64_t fused_inner = 0;                          // channels of the expansion in the fusion
  int64_t hidden_size = 0;                          // width of the tower's output
  int64_t tokens_per_side = 0;
  double rms_norm_eps = 0;  // only for the embedder's norms

  int64_t tokens() const { return tokens_per_side * tokens_per_side; }
  // Throws kConfig, with the name of the field, if a value is out of range or two do not fit.
  void validate() const;
};

inline constexpr int64_t kStemKernel = 3, kStemStride = 2;
inline constexpr int64_t kPlaces = 1024;  // the inner channels of about this many places are in memory at a time

inline int64_t reduced(int64_t count, int64_t stride) { return (count + stride - 1) / stride; }
inline Grid reduced(Grid grid, int64_t stride) { return {reduced(grid.rows, stride), reduced(grid.cols, stride)}; }
inline int64_t places(Grid grid) { return grid.rows * grid.cols; }

// A convolution padded so that ceil(count / stride) places remain. If the padding is odd, the larger half comes last.
inline Convolution same_convolution(Grid grid, int64_t channels, int64_t kernel, int64_t stride) {
  const auto before = [&](int64_t count) {
    return std::max<int64_t>((reduced(count, stride) - 1) * stride + kernel - count, 0) / 2;
  };
  return {grid.rows, grid.cols, channels, kernel, stride, before(grid.rows), before(grid.cols)};
}

// The number of rows of a block's output that are computed at a time.
inline int64_t rows_at_once(Grid grid) { return std::clamp<int64_t>(kPlaces / grid.cols, 1, grid.rows); }

// The number of rows of the input that a convolution needs for these rows of output.
inline int64_t rows_seen(const Convolution& c) {
  const Grid out = {c.out_rows(), c.out_cols()};
  return std::min(c.rows, (rows_at_once(out) - 1) * c.stride + c.kernel);
}

// One step of the tower, from the stem to the last block. `from` and `to` are buffers, the same for a block that adds
// to its input.
struct MobileNetStep {
  const MobileNetBlock* block;  // null: the stem
  size_t stage, index;
  Grid in, out;
  int from, to;
  int64_t in_floats() const { return block ? places(in) * block->in_channels : 0; }
};

inline constexpr int kBuffers = 3;  // they hold the residual and the output of the last stage but one

struct MobileNetPlan {
  std::vector<MobileNetStep> steps;
  std::array<int64_t, kBuffers> buffers = {};  // floats
  int kept = 0;                                // the buffer with the output of the last stage but one
  int last = 0;                                // the buffer of the last stage
  Grid kept_grid = {}, last_grid = {};
  int64_t joint = 1;     // in each place, both outputs have a multiple of this many floats
  int64_t whole = 0;     // further floats that a block needs for all places
  int64_t unfolded = 0;  // floats that a block needs for kPlaces places, and so on
  int64_t expanded = 0, middle = 0, projected = 0;

  explicit MobileNetPlan(const MobileNetConfig& config);

  int64_t floats() const;

 private:
  void count(const MobileNetBlock& block, const MobileNetStep& step);
};

// How to resize a grid to `side` x `side` places by torch's rules: the old places of each new place, and their weights.
// If the sides are multiples, a new place is the mean of a cell. Otherwise it is interpolated bilinearly.
struct Resampling {
  std::vector<int32_t> places;
  std::vector<float> weights;
  int64_t per_place = 1;
};
Resampling resampling(Grid grid, int64_t side);

// The place in a grid of `from` rows or columns that is nearest to place `at` in a grid of `to`, by torch's rule.
int64_t nearest(int64_t at, int64_t from, int64_t to);

}  // namespace gemlet::vision
