#include "model/kv_cache.h"

#include <algorithm>

#include "formats/layout.h"
#include "kernels/attention/attention.h"

namespace gemlet {

namespace {
constexpr int64_t kSlabBytes = 4 << 20;
}

KvLayout::KvLayout(const ModelConfig& config, KvFormat kv_format) : format(kv_format) {
  // Each text has blocks of its own, full but for one.
  const int64_t together = std::min(config.max_context, kChunkTokens);
  if (config.bidirectional) texts_blocks = std::min(kPassTexts, together) + together / kKvBlockTokens;
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
      const int64_t whole = blocks(config.max_context);
      int64_t peak = whole;
      // What the first token of a chunk sees and the chunk; both may begin and end anywhere inside a block.
      if (layer.sliding_window > 0 && !config.bidirectional) {
        peak = std::min(peak, blocks(layer.sliding_window - 1 + kChunkTokens) + 1);
      }
      kinds.push_back({layer.sliding_window, head_bytes, layer.num_kv_heads, 0, whole, peak});
    }
    if (config.bidirectional && kinds[kind].layers == 1) {
      layers.push_back({kind, 0});
      continue;
    }
    layers.push_back({kind, static_cast<size_t>(kinds[kind].layers * kinds[kind].layer_heads)});
    ++kinds[kind].layers;
  }
}

int64_t KvLayout::Kind::slab_blocks() const { return std::clamp<int64_t>(kSlabBytes / block_bytes(), 1, peak_blocks); }

int64_t KvLayout::bytes_per_token(bool sliding) const {
  int64_t bytes = 0;
  for (const Kind& kind : kinds) {
    if ((kind.window > 0) == sliding) bytes += kind.block_bytes() / kKvBlockTokens;
  }
  return bytes;
}

int64_t KvLayout::peak_bytes() const {
  int64_t bytes = 0;
  for (const Kind& kind : kinds) bytes += std::max(kind.resident_blocks(), texts_blocks) * kind.block_bytes();
  return bytes;
}

KvCache::KvCache(const KvLayout& layout, Backend& backend)
    : layout_(&layout), backend_(&backend), tables_(layout.kinds.size()) {
  for (size_t kind = 0; kind < tables_.size(); ++kind) {
    const auto heads = static_cast<size_t>(layout.kinds[kind].layers * layout.kinds[kind].layer_heads);
    tables_[kind].heads.resize(heads);
  }
}

int64_t KvCache::bytes() const {
  int64_t total = 0;
  for (const Table& table : tables_) {
    const AlignedBuffer* last = nullptr;
    for (const auto& slab : table.slabs) {  // blocks of one slab are neighbours
      if (slab.get() != last) total += static_cast<int64_t>(slab->size());
      last = slab.get();
    }
  }
  return total;
}

std::shared_ptr<const AlignedBuffer> KvCache::make_slab(int64_t bytes) {
  auto buffer = std::make_unique<AlignedBuffer>(backend_->allocate(static_cast<size_t>(bytes)));
  const auto give_back = [bytes, resident = layout_->resident](const AlignedBuffer* slab) {
    delete slab;
    *resident -= bytes;
  };
  *layout_->resident += bytes;
  return {buffer.release(), give_back};
}

void KvCache::reserve(int64_t tokens) {
  const int64_t last_block = (length_ + tokens - 1) / kKvBlockTokens;
  for (size_t kind = 0; kind < tables_.size(); ++kind) {
    Table& table = tables_[kind];
    const KvLayout::Kind& sizes = layout_->kinds[kind];
    for (int64_t have; (have = static_cast<int64_t>(table.slabs.size())) <= last_block - table.first_block;) {
      // Several blocks at once, as many as are there already: from 2 MB on the system can give huge pages. None that
      // the context has no tokens for.
      const int64_t needed = last_block - table.first_block + 1 - have;
      const int64_t left = std::min(sizes.peak_blocks, sizes.context_blocks - table.first_block) - have;
      const int64_t count = std::clamp<int64_t>(std::max(needed, std::min(have, left)), 1, sizes.slab_blocks());
      const auto slab = make_slab(count * sizes.block_bytes());
      table.slabs.reserve(static_cast<size_t>(have + count));
      for (auto& head : table.heads) head.reserve(static_cast<size_t>(have + count));
      table.slabs.insert(table.slabs.end(), static_cast<size_t>(count), slab);
      const uint8_t* at = slab->data();
      for (auto& head : table.heads) {
        for (int64_t i = 0; i < count; ++i, at += sizes.head_bytes) head.push_back(at);
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
        std::min<int64_t>(oldest / kKvBlockTokens - table.first_block, static_cast<int64_t>(table.slabs.size()));
    if (drop <= 0) continue;
    table.slabs.erase(table.slabs.begin(), table.slabs.begin() + drop);
    for (auto& head : table.heads) head.erase(head.begin(), head.begin() + drop);
    table.first_block += drop;
  }
}

KvView KvCache::view(size_t layer) const {
  const KvLayout::Place& place = layout_->layers[layer];
  const Table& table = tables_[place.kind];
  return {table.heads.data() + place.first_head, table.first_block};
}

}  // namespace gemlet
