// Attention of all rows of an image over all rows of the image. It uses the attention kernels, with KV blocks that are
// made for one pass.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"

namespace gemlet::vision {

struct HeadNorms {
  const float* q = nullptr;  // weights of the RMS norms of heads; null: none
  const float* k = nullptr;
  bool v = false;  // values have an RMS norm without weight
  float eps = 0;
};

class SelfAttention {
 public:
  // Uses `shape`, except its format of keys and values. This class chooses a format that has the precision of products
  // with `weights`.
  SelfAttention(Backend& backend, AttentionShape shape, Format weights, int64_t rows);

  // Computes out [rows, heads, head_dim] from q, k and v, whose contents change. cosines and sines are [rows, head_dim
  // / 2]; if they are null, nothing is rotated.
  void run(Backend& backend, float* q, float* k, float* v, const HeadNorms& norms, const float* cosines,
           const float* sines, float* out);

  // Computes attention of `queries` rows of q over `rows` rows of k and v, without norms and rotation.
  void run_over(Backend& backend, float* q, int64_t queries, float* k, float* v, float* out);

  static int64_t bytes(const Backend& backend, int64_t kv_heads, int64_t head_dim, Format weights, int64_t rows);

 private:
  int64_t rows_;
  AttentionShape shape_;
  DeviceMemory memory_;
  std::vector<WritableKvBlock> stored_;
  std::vector<KvBlock> read_;
};

}  // namespace gemlet::vision
