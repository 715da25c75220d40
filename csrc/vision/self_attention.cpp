#include "vision/self_attention.h"

#include <algorithm>

namespace gemlet::vision {
namespace {

KvFormat kv_format(Format weights) { return weights == Format::kF32 ? KvFormat::kF32 : KvFormat::kBf16; }

int64_t block_count(int64_t rows) { return (rows + kKvBlockTokens - 1) / kKvBlockTokens; }

}  // namespace

int64_t SelfAttention::bytes(const Backend& backend, int64_t kv_heads, int64_t head_dim, Format weights, int64_t rows) {
  return block_count(rows) * kv_heads * backend.kv_head_bytes(head_dim, kv_format(weights));
}

SelfAttention::SelfAttention(Backend& backend, AttentionShape shape, Format weights, int64_t rows)
    : rows_(rows), shape_(shape) {
  shape_.bidirectional = true;
  shape_.kv_format = kv_format(weights);
  memory_ = backend.allocate(static_cast<size_t>(bytes(backend, shape_.num_kv_heads, shape_.head_dim, weights, rows)));
  const int64_t head_bytes = backend.kv_head_bytes(shape_.head_dim, shape_.kv_format), blocks = block_count(rows);
  for (int64_t i = 0; i < blocks; ++i) {
    uint8_t* const block = memory_.data() + i * head_bytes;  // the blocks of a head are neighbours
    stored_.push_back({block, blocks * head_bytes});
    read_.push_back({block, blocks * head_bytes});
  }
}

void SelfAttention::run(Backend& backend, float* q, float* k, float* v, const HeadNorms& norms, const float* cosines,
                        const float* sines, float* out) {
  const StoreSegment stored = {{stored_, 0, 0}, 0, rows_, 0};
  backend.rope_and_store(shape_, {&stored, 1}, q, k, v, norms.q, norms.k, norms.v, norms.eps, cosines, sines);
  AttentionSegment read = {};
  read.kv = {read_, 0, 0};
  read.rows = rows_;
  backend.attention(shape_, {&read, 1}, q, out);
}

void SelfAttention::run_over(Backend& backend, float* q, int64_t queries, float* k, float* v, float* out) {
  const StoreSegment stored = {{stored_, 0, 0}, 0, rows_, 0};
  backend.rope_and_store(shape_, {&stored, 1}, nullptr, k, v, nullptr, nullptr, false, 0, nullptr, nullptr);
  backend.scale(shape_.query_scale, queries * shape_.num_heads * shape_.head_dim, q);
  std::vector<AttentionSegment> parts;  // each segment ends where the keys end, so that it sees all keys
  for (int64_t row = 0; row < queries; row += rows_) {
    AttentionSegment part = {};
    part.kv = {read_, 0, 0};
    part.row = row;
    part.rows = std::min(rows_, queries - row);
    part.position = rows_ - part.rows;
    parts.push_back(part);
  }
  backend.attention(shape_, parts, q, out);
}

}  // namespace gemlet::vision
