// Attention block: q, k, v projections, head norms, rotation, cache, grouped-query attention, output projection.
#include <vector>

#include "model/forward.h"

namespace gemlet {

void ForwardPass::attention(size_t index) {
  const LayerConfig& c = model_.config().layers[index];
  const LayerWeights& w = model_.weights().layers[index];
  float* const q = wide_;                                          // [rows, heads, head_dim]
  float* const mixed = q + rows_ * c.num_heads * c.head_dim;       // [rows, heads, head_dim]
  float* const k = mixed + rows_ * c.num_heads * c.head_dim;       // [rows, kv_heads, head_dim]
  float* const v = k + rows_ * c.num_kv_heads * c.head_dim;        // [rows, kv_heads, head_dim]

  const MatmulTarget qkv[] = {{&w.q_proj, q}, {&w.k_proj, k}, {&w.v_proj, v}};
  backend_.matmul(normed_, rows_, qkv);

  const AttentionShape shape = {c.num_heads,
                                c.num_kv_heads,
                                c.head_dim,
                                c.sliding_window,
                                static_cast<float>(c.attention_softcap),
                                static_cast<float>(c.query_scale),
                                model_.kv_layout().format};
  std::vector<AttentionSegment> segments;
  int64_t row = 0;
  for (const Segment& segment : batch_) {
    const int64_t rows = static_cast<int64_t>(segment.ids.size());
    segments.push_back({segment.kv->view(index), row, rows, segment.kv->length()});
    row += rows;
  }
  const Rope* rope = ropes_.data();
  while (!rope->example->same_rope(c)) ++rope;
  backend_.rope_and_store(shape, segments, q, k, v, w.q_norm, w.k_norm, eps_, rope->cosines, rope->sines);
  backend_.attention(shape, segments, q, mixed);

  const MatmulTarget output = {&w.o_proj, branch_};
  backend_.matmul(mixed, rows_, {&output, 1});
}

}  // namespace gemlet
