#include "model/kv_cache.h"

#include <algorithm>

#include "kernels/attention/attention.h"

namespace gemlet {

using kernels::kKvBlockTokens;

namespace {
constexpr int64_t kSlabBytes = 4 << 20;
}

KvLayout::KvLayout(const ModelConfig& config, KvFormat kv_format) : format(kv_format) {
  std::vector<const LayerConfig*> examples;  // one layer of each kind
  for (const LayerConfig& layer : config.layers) {
    if (layer.kv_source >= 0) {
      layers.push_back(layers[static_cast<size_t>(layer.kv_source)]);
      continue;
    }
    size_t kind = 0;
    while (kind < examples.size() && !examples[kind]->same_cache(layer)) ++kind;
    if (kind == examples.size()) {
      const int64_t head_bytes = kernels::kv_head_bytes(layer.head_dim, element_bytes(format));
      examples.push_back(&layer);
      const auto blocks = [](int64_t count) { return (count + kKvBlockTokens - 1) / kKvBlockTokens; };
      int64_t peak = blocks(config.max_context);
      // What the first token of a chunk sees and the chunk; both may begin and end anywhere inside a block.
      if (layer.sliding_window > 0) peak = std::min(peak, blocks(layer.sliding_window - 1 + kChunkTokens) + 1);
      kinds.push_back({layer.sliding_window, layer.num_kv_heads * head_bytes, 0, peak});
    }
    layers.push_back({kind, kinds[kind].layers * kinds[kind].layer_bytes});
    ++kinds[kind].layers;
  }
}

int64_t KvLayout::bytes_per_token(bool sliding) const {
  int64_t bytes = 0;
  for (const Kind& kind : kinds) {
    if ((kind.window > 0) == sliding) bytes += kind.block_bytes() / kKvBlockTokens;
  }
  return bytes;
}

int64_t KvLayout::peak_bytes() const {
  int64_t bytes = 0;
  for (const Kind& kind : kinds) bytes += kind.peak_blocks * kind.block_bytes();
  return bytes;
}

int64_t KvCache::bytes() const {
  int64_t total = 0;
  for (size_t kind = 0; kind < tables_.size(); ++kind) {
    total += static_cast<int64_t>(tables_[kind].blocks.size()) * layout_->kinds[kind].block_bytes();
  }
  return total;
}

void KvCache::reserve(int64_t tokens) {
  const int64_t last_block = (length_ + tokens - 1) / kKvBlockTokens;
  for (size_t kind = 0; kind < tables_.size(); ++kind) {
    Table& table = tables_[kind];
    const int64_t bytes = layout_->kinds[kind].block_bytes();
    const int64_t most = std::max<int64_t>(1, kSlabBytes / bytes);
    for (int64_t have; (have = static_cast<int64_t>(table.blocks.size())) <= last_block - table.first_block;) {
      // Several blocks at once, as many as are there already: from 2 MB on the system can give huge pages.
      const int64_t needed = last_block - table.first_block + 1 - have;
      const int64_t wanted = std::max(needed, std::min(have, layout_->kinds[kind].peak_blocks - have));
      const int64_t count = std::clamp<int64_t>(wanted, 1, most);
      const auto slab = std::make_shared<AlignedBuffer>(backend_->allocate(static_cast<size_t>(count * bytes)));
      table.blocks.reserve(static_cast<size_t>(have + count));
      table.pointers.reserve(static_cast<size_t>(have + count));
      for (int64_t i = 0; i < count; ++i) {
        table.blocks.emplace_back(slab, slab->data() + i * bytes);
        table.pointers.push_back(table.blocks.back().get());
      }
    }
  }
}

void KvCache::commit(int64_t tokens) {
  length_ += tokens;
  for (size_t kind = 0; kind < tables_.size(); ++kind) {
    const int64_t window = layout_->kinds[kind].window;
    if (window == 0) continue;
    Table& table = tables_[kind];
    const int64_t oldest = std::max<int64_t>(0, length_ - window + 1);  // the next token sees this one and later
    const int64_t drop =
        std::min<int64_t>(oldest / kKvBlockTokens - table.first_block, static_cast<int64_t>(table.blocks.size()));
    if (drop <= 0) continue;
    table.blocks.erase(table.blocks.begin(), table.blocks.begin() + drop);
    table.pointers.erase(table.pointers.begin(), table.pointers.begin() + drop);
    table.first_block += drop;
  }
}

KvView KvCache::view(size_t layer) const {
  const KvLayout::Place& place = layout_->layers[layer];
  const Table& table = tables_[place.kind];
  return {table.pointers.data(), table.first_block, place.offset};
}

}  // namespace gemlet
