#include "vision/mobilenet_plan.h"

#include <numeric>

#include "base/error.h"

namespace gemlet::vision {
namespace {

void check_block(const MobileNetBlock& block, int64_t channels) {
  constexpr int64_t kMostChannels = 1 << 16, kMostKernel = 15;
  if (block.in_channels != channels) {
    fail(ErrorCode::kConfig, "vision: a block takes ", block.in_channels, " channels, expected the ", channels,
         " channels of the block before it");
  }
  check_range("vision: ", "a block's channels", block.out_channels, 1, kMostChannels);
  check_range("vision: ", "a block's stride", block.stride, 1, 4);
  check_range("vision: ", "a kernel", block.middle_kernel, 0, kMostKernel);
  if (block.attends()) {
    check_range("vision: ", "an attention's heads", block.num_heads, 1, 1024);
    check_range("vision: ", "an attention's head_dim", block.head_dim, 2, kMaxHeadDim);
    if (block.head_dim % 2 != 0) {
      fail(ErrorCode::kConfig, "vision: head_dim is ", block.head_dim, ", expected an even number");
    }
    check_range("vision: ", "the stride of keys without a convolution", block.stride, 1,
                block.middle_kernel > 0 ? 4 : 1);
    return;
  }
  check_range("vision: ", "an expansion's channels", block.inner, 1, kMostChannels);
  check_range("vision: ", "a kernel", block.start_kernel, block.kind == MobileNetBlock::Kind::kEdge ? 1 : 0,
              kMostKernel);
  const bool convolves = block.start_kernel > 0 || block.middle_kernel > 0;
  check_range("vision: ", "the stride of a block without a convolution", block.stride, 1, convolves ? 4 : 1);
}

}  // namespace

void MobileNetConfig::validate() const {
  check_range("vision: ", "height", height, 1, 1 << 13);
  check_range("vision: ", "width", width, 1, 1 << 13);
  check_range("vision: ", "the stem's channels", stem_channels, 1, 1 << 16);
  check_range("vision: ", "the number of stages", static_cast<int64_t>(stages.size()), 2, 16);
  int64_t channels = stem_channels;
  for (const std::vector<MobileNetBlock>& stage : stages) {
    check_range("vision: ", "the number of a stage's blocks", static_cast<int64_t>(stage.size()), 1, 1024);
    for (const MobileNetBlock& block : stage) {
      check_block(block, channels);
      channels = block.out_channels;
    }
  }
  check_range("vision: ", "the fusion's channels", fused_inner, 1, 1 << 16);
  check_range("vision: ", "hidden_size", hidden_size, 1, 1 << 16);
  check_range("vision: ", "the tokens in a row", tokens_per_side, 1, 256);
  if (!(rms_norm_eps > 0 && rms_norm_eps < 1)) {
    fail(ErrorCode::kConfig, "vision: rms_norm_eps is ", rms_norm_eps, ", expected a number from 0 to 1");
  }
  check_range("vision: ", "the floats of an image on its way", MobileNetPlan(*this).floats(), 1, int64_t{1} << 31);
}

MobileNetPlan::MobileNetPlan(const MobileNetConfig& config) {
  Grid grid = {config.height, config.width};
  int at = 0;
  const auto add = [&](const MobileNetBlock* block, size_t stage, size_t index, int64_t stride, int64_t channels) {
    const Grid out = reduced(grid, stride);
    int to = at;
    const bool is_kept = stage + 1 == config.stages.size() && index == 0;
    if (is_kept) {
      kept = at;
      kept_grid = grid;
    }
    if (!block || is_kept || !block->adds_input()) {
      for (to = 0; block && (to == at || (to == kept && stage + 1 == config.stages.size()));) ++to;
    }
    buffers[static_cast<size_t>(to)] = std::max(buffers[static_cast<size_t>(to)], places(out) * channels);
    steps.push_back({block, stage, index, grid, out, at, to});
    grid = out;
    at = to;
  };
  add(nullptr, 0, 0, kStemStride, config.stem_channels);
  const int64_t stem_places = rows_at_once(grid) * grid.cols;
  unfolded = stem_places * kChannels * kStemKernel * kStemKernel;
  for (size_t stage = 0; stage < config.stages.size(); ++stage) {
    for (size_t i = 0; i < config.stages[stage].size(); ++i) {
      const MobileNetBlock& block = config.stages[stage][i];
      add(&block, stage, i, block.grid_stride(), block.out_channels);
      count(block, steps.back());
    }
  }
  last = at;
  last_grid = grid;
  const int64_t kept_channels = config.stages[config.stages.size() - 2].back().out_channels;
  const int64_t last_channels = config.stages.back().back().out_channels;
  joint = std::gcd(kept_channels, last_channels);
  for (int64_t& floats : buffers) floats = reduced(floats, joint) * joint;
  const int64_t fused = rows_at_once(kept_grid) * kept_grid.cols;
  whole = std::max(whole, places(kept_grid) * (kept_channels + last_channels + config.hidden_size) +
                              config.tokens() * config.hidden_size);
  expanded = std::max(expanded, fused * config.fused_inner);
}

int64_t MobileNetPlan::floats() const {
  return std::accumulate(buffers.begin(), buffers.end(), int64_t{0}) + whole + unfolded + expanded + middle + projected;
}

void MobileNetPlan::count(const MobileNetBlock& block, const MobileNetStep& step) {
  const int64_t some = rows_at_once(step.out) * step.out.cols;
  if (block.attends()) {
    const int64_t widest = std::max(block.in_channels, block.out_channels), queries = block.num_heads * block.head_dim;
    whole = std::max(whole, places(step.in) * (widest + 2 * queries) +
                                places(reduced(step.in, block.stride)) * (block.in_channels + 2 * block.head_dim));
    return;
  }
  whole = std::max(whole, step.in_floats());  // a copy, or the output of the first convolution
  projected = std::max(projected, some * block.out_channels);
  if (block.kind == MobileNetBlock::Kind::kEdge) {
    unfolded = std::max(unfolded, some * block.in_channels * block.start_kernel * block.start_kernel);
    expanded = std::max(expanded, some * block.inner);
    return;
  }
  int64_t seen = some;
  if (block.middle_kernel > 0) {
    const Convolution c = same_convolution(step.in, block.inner, block.middle_kernel, block.stride);
    seen = rows_seen(c) * step.in.cols;
    middle = std::max(middle, some * block.inner);
  }
  expanded = std::max(expanded, seen * block.inner);
}

Resampling resampling(Grid grid, int64_t side) {
  Resampling result;
  const auto put = [&](int64_t row, int64_t col, float weight) {
    result.places.push_back(static_cast<int32_t>(row * grid.cols + col));
    result.weights.push_back(weight);
  };
  const bool whole = grid.rows % side == 0 && grid.cols % side == 0;
  const int64_t rows = grid.rows / side, cols = grid.cols / side;
  result.per_place = whole ? rows * cols : 4;
  struct Between {
    int64_t low, high;
    float share;  // weight of the higher place
  };
  const auto between = [&](int64_t at, int64_t count) {
    const float scale = static_cast<float>(count) / static_cast<float>(side);
    const float place = std::max((static_cast<float>(at) + 0.5f) * scale - 0.5f, 0.0f);
    const auto low = std::min(static_cast<int64_t>(place), count - 1);
    return Between{low, std::min(low + 1, count - 1), place - static_cast<float>(low)};
  };
  for (int64_t i = 0; i < side * side; ++i) {
    if (whole) {
      for (int64_t j = 0; j < rows * cols; ++j) {
        put(i / side * rows + j / cols, i % side * cols + j % cols, 1.0f / static_cast<float>(rows * cols));
      }
      continue;
    }
    const Between y = between(i / side, grid.rows), x = between(i % side, grid.cols);
    put(y.low, x.low, (1.0f - y.share) * (1.0f - x.share));
    put(y.low, x.high, (1.0f - y.share) * x.share);
    put(y.high, x.low, y.share * (1.0f - x.share));
    put(y.high, x.high, y.share * x.share);
  }
  return result;
}

int64_t nearest(int64_t at, int64_t from,
                int64_t to) {  // the place in a grid of `from` that is nearest to a place in one of `to`
  const float scale = static_cast<float>(from) / static_cast<float>(to);
  return std::min(static_cast<int64_t>(static_cast<float>(at) * scale), from - 1);
}

}  // namespace gemlet::vision
