#include "model/rope.h"

#include <algorithm>
#include <cmath>

namespace gemlet {

std::vector<const LayerConfig*> rope_kinds(const ModelConfig& config) {
  std::vector<const LayerConfig*> kinds;
  for (const LayerConfig& layer : config.layers) {
    const auto same = [&](const LayerConfig* known) { return known->same_rope(layer); };
    if (std::none_of(kinds.begin(), kinds.end(), same)) kinds.push_back(&layer);
  }
  return kinds;
}

// Each step is rounded to float32, like in the reference: at far positions the rounding of a frequency changes the
// angle.
std::vector<float> rope_frequencies(const LayerConfig& layer) {
  if (!layer.rope_frequencies.empty()) return layer.rope_frequencies;
  const int64_t rotated = static_cast<int64_t>(layer.rope_partial_factor * static_cast<double>(layer.head_dim)) / 2;
  std::vector<float> frequencies(static_cast<size_t>(layer.head_dim / 2), 0.0f);
  for (int64_t i = 0; i < rotated; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(layer.head_dim);
    const float power = static_cast<float>(std::pow(layer.rope_theta, static_cast<double>(exponent)));
    frequencies[static_cast<size_t>(i)] = 1.0f / power / static_cast<float>(layer.rope_scaling_factor);
  }
  return frequencies;
}

}  // namespace gemlet
