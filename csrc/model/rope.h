// The angles by which a layer rotates its queries and keys. Pair i of a head is lanes i and i + head_dim / 2.
#pragma once

#include <vector>

#include "model/config.h"

namespace gemlet {

// One layer of each kind of rotation, in the order in which the kinds first appear.
std::vector<const LayerConfig*> rope_kinds(const ModelConfig& config);

// [head_dim / 2] radians per position: base^(-2i / head_dim) / factor, 0 for pairs beyond rope_partial_factor.
std::vector<float> rope_frequencies(const LayerConfig& layer);
}  // namespace gemlet
