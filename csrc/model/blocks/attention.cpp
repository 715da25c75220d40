// Attention block: q, k, v projections, head norms, rotation, cache, grouped-query attention, output projection.
#include <vector>

#include "model/forward.h"

namespace gemlet {

void ForwardPass::attention(size_t index, bool keys_alone) {
  const LayerConfig& c = config_.layers[index];
  const LayerWeights& w = weights_.layers[index];
  const bool with_keys = c.kv_source < 0 && !keys_are_complete_;
  const int64_t query_dims = c.num_heads * c.head_dim, key_dims = c.num_kv_heads * c.head_dim;
  float* const q = take(Region::kQueries, query_dims);
  float* const mixed = take(Region::kMixed, query_dims);
  float* const k = take(Region::kKeys, key_dims);
  float* const v = take(Region::kValues, key_dims);

  std::vector<Projection> projections;
  if (!keys_alone) projections.push_back({normed_, &w.q_proj, Target::kQProj, q});
  if (with_keys) projections.push_back({normed_, &w.k_proj, Target::kKProj, k});
  if (with_keys && !c.key_is_value) projections.push_back({normed_, &w.v_proj, Target::kVProj, v});
  project(index, projections);
  if (with_keys && c.key_is_value) backend_.copy(k, rows_ * key_dims, v);

  const AttentionShape shape = {c.num_heads,
                                c.num_kv_heads,
                                c.head_dim,
                                c.sliding_window,
                                config_.bidirectional,
                                static_cast<float>(c.attention_softcap),
                                static_cast<float>(c.query_scale),
                                model_.kv->layout().format};
  std::vector<StoreSegment> stores;
  std::vector<const Adapter*> adapters;  // the adapter of each of `stores`
  std::vector<AttentionSegment> segments;
  for (const Part& part : parts_) {
    if (part.rows == 0) continue;
    stores.push_back({with_keys ? part.kv->slots(index) : KvView<uint8_t>{}, part.row, part.rows, part.position});
    adapters.push_back(part.segment->adapter);
    if (!part.kv) continue;
    segments.push_back({{part.kv->table().view(index), part.row, part.rows, part.position}, {}});
    if (c.bidirectional_spans) segments.back().spans = part.spans;
  }
  const Rope& rope = rope_of(c);
  const auto norm_of = [&](size_t i, const float* norm) { return adapters[i] ? adapters[i]->norm(norm) : norm; };
  for (size_t i = 0, end = 0; i < stores.size(); i = end) {  // neighbours with the same norms
    const float *const q_norm = norm_of(i, w.q_norm), *const k_norm = norm_of(i, w.k_norm);
    const int64_t row = stores[i].row;
    for (; end < stores.size() && norm_of(end, w.q_norm) == q_norm && norm_of(end, w.k_norm) == k_norm; ++end) {
      stores[end].row -= row;
    }
    backend_.rope_and_store(shape, std::span(stores).subspan(i, end - i), keys_alone ? nullptr : q + row * query_dims,
                            with_keys ? k + row * key_dims : nullptr, v + row * key_dims, q_norm, k_norm, c.v_norm,
                            eps_, rope.cosines + row * (c.head_dim / 2), rope.sines + row * (c.head_dim / 2));
  }
  if (keys_alone) return;
  config_.target_size > 0 ? attend_to_target(c, shape, q, mixed) : backend_.attention(shape, segments, q, mixed);

  project(index, {mixed, &w.o_proj, Target::kOProj, branch_});
}

}  // namespace gemlet
