// Balanced channels. RMSNorm ends in a product with a weight for each channel, and a matrix follows. Dividing that
// weight by s and multiplying the matrix's column by s changes nothing, until the matrix is rounded to four bits: a
// block of 32 columns has one scale, so its errors are about as large in a column whose inputs are large as in any
// other. With s = imp^(1/4), where imp is the mean square of the inputs, the columns that matter get more of the steps.
// benchmarks/SPEED.md has the figures of this and of other exponents.
//
// The code that reads the files estimates imp (python/gemlet/packing/balance.py). An adapter is trained on the norm's
// original output, so its A is multiplied by s too.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "formats/formats.h"

namespace gemlet {

inline constexpr float kLeastBalance = 1.0f / 64;  // least value of s; the largest is 64

struct Balance {
  std::vector<float> scale;  // s [hidden]; empty: ones
  std::vector<float>
      importance;        // importance of the columns after it, imp / s^2 = s^2, with ones up to a whole superblock
  bool settled = false;  // it was given, or something was packed without it
};

// The same for keys in a cache with one scale for a token's key of a head. RMSNorm makes the channels of a key similar
// in size, and then the weights of k_norm make some of them a hundred times as large as others. The factors f
// [head_dim] divide k_norm and multiply q_norm, so that no score changes. Both lanes of a pair that RoPE turns have the
// same factor. An error in a channel counts in proportion to the query there. In an int8 cache, f is k_norm's size to
// the power 3/4. In an int4 cache all channels have the same error, because keys are rotated: it grows with the length
// of the key times that of the query, which is least if f^2 is k_norm's size / q_norm's.
std::vector<float> key_factors(std::span<const float> k_norm, std::span<const float> q_norm, KvFormat format);

// The keys are the names of the matrices that are balanced.
using Balances = std::map<std::string, std::shared_ptr<const Balance>>;

}  // namespace gemlet
