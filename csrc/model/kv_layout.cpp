#include "model/kv_layout.h"

#include <algorithm>

namespace gemlet {
namespace {

constexpr int64_t kSlabBytes = 4 << 20;

int64_t blocks_of(int64_t tokens) { return (tokens + kKvBlockTokens - 1) / kKvBlockTokens; }

}  // namespace

KvLayout::KvLayout(const ModelConfig& config, KvFormat kv_format, const Backend& backend) : format(kv_format) {
  if (config.target_size > 0) return;  // it reads another model's
  // Each text has its own blocks. All of them are full, except its last one.
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
      examples.push_back(&layer);
      const int64_t whole = blocks_of(config.max_context);
      int64_t peak = whole;
      // The tokens that the first token of a chunk sees, and the chunk itself. Both may begin and end anywhere inside a
      // block.
      if (layer.sliding_window > 0 && !config.bidirectional) {
        peak = std::min(peak, blocks_of(layer.sliding_window - 1 + config.most_rows()) + 1);
      }
      kinds.push_back(
          {layer.sliding_window, backend.kv_head_bytes(layer.head_dim, format), layer.num_kv_heads, 0, whole, peak});
    }
    if (config.bidirectional && kinds[kind].layers == 1) {
      layers.push_back({kind, 0});
      continue;
    }
    layers.push_back({kind, kinds[kind].heads()});
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

int64_t KvLayout::bytes_of(int64_t tokens) const {
  const int64_t blocks = (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  int64_t bytes = 0;
  for (const Kind& kind : kinds) bytes += std::min(kind.peak_blocks, blocks) * kind.block_bytes();
  return bytes;
}

int64_t KvLayout::peak_bytes() const {
  int64_t bytes = 0;
  for (const Kind& kind : kinds) bytes += std::max(kind.peak_blocks, texts_blocks) * kind.block_bytes();
  return bytes;
}

}  // namespace gemlet
