#include "engine/prefix_cache.h"

#include <algorithm>

namespace gemlet {
namespace {

std::vector<int32_t> tokens_of_block(std::span<const int32_t> ids, int64_t index) {
  const auto block = ids.subspan(static_cast<size_t>(index * kKvBlockTokens), static_cast<size_t>(kKvBlockTokens));
  return {block.begin(), block.end()};
}

}  // namespace

PrefixCache::PrefixCache(const KvPool& pool, int64_t most_bytes) : pool_(pool), most_bytes_(most_bytes) {}
PrefixCache::~PrefixCache() = default;

int64_t PrefixCache::restore(const Root& root, std::span<const int32_t> ids, KvTable& table) {
  const auto found = roots_.find(root);
  if (found == roots_.end()) return 0;
  const int64_t most = (static_cast<int64_t>(ids.size()) - 1) / kKvBlockTokens;
  std::vector<Entry*> path;
  Children* children = &found->second;
  while (static_cast<int64_t>(path.size()) < most) {
    const auto next = children->find(tokens_of_block(ids, static_cast<int64_t>(path.size())));
    if (next == children->end()) break;
    path.push_back(next->second.get());
    children = &path.back()->children;
  }
  for (auto entry = path.rbegin(); entry != path.rend(); ++entry) used(**entry);
  // The longest prefix whose windows are complete. Nearly always this is the whole path.
  for (size_t length = path.size(); length > 0; --length) {
    KvTable longer = table.fork();
    for (size_t i = 0; i < length; ++i) {
      std::vector<KvBlockRef> blocks;
      for (const KvBlockRef& block : path[i]->blocks) blocks.push_back(block.share());
      longer.append(std::move(blocks));
    }
    if (!longer.complete()) continue;
    table = std::move(longer);
    return table.length();
  }
  return 0;
}

int64_t PrefixCache::keep(const Root& root, std::span<const int32_t> ids, const KvTable& table, int64_t from) {
  const int64_t full = table.length() / kKvBlockTokens;
  if (most_bytes_ == 0 || full == from) return full;
  Children* children = &roots_[root];
  Entry* parent = nullptr;
  std::vector<Entry*> path;
  for (int64_t index = 0; index < full; ++index) {
    auto [place, is_new] = children->try_emplace(tokens_of_block(ids, index));
    if (is_new) {
      if (index < from) {  // it was given up meanwhile, and with it all that came behind
        children->erase(place);
        break;
      }
      auto entry = std::make_unique<Entry>(Entry{parent, children, &place->first, table.share(index), 0});
      for (size_t kind = 0; kind < entry->blocks.size(); ++kind) {
        if (entry->blocks[kind]) entry->bytes += pool_.layout().kinds[kind].block_bytes();
      }
      bytes_ += entry->bytes;
      entry->use = uses_.insert(uses_.end(), entry.get());
      place->second = std::move(entry);
    }
    parent = place->second.get();
    path.push_back(parent);
    children = &parent->children;
  }
  for (auto entry = path.rbegin(); entry != path.rend(); ++entry) used(**entry);
  if (bytes_ > most_bytes_) give_up(bytes_ - most_bytes_);
  return full;
}

bool PrefixCache::give_up(int64_t bytes) {
  const int64_t before = bytes_;
  while (!uses_.empty() && before - bytes_ < bytes) remove(*uses_.front());
  return bytes_ < before;
}

// A child is never used later than its parent, so the first of uses_ has no children.
void PrefixCache::remove(Entry& entry) {
  bytes_ -= entry.bytes;
  uses_.erase(entry.use);
  Children* const siblings = entry.siblings;
  siblings->erase(siblings->find(*entry.tokens));
}

void PrefixCache::forget_gone_adapters() {
  const std::weak_ptr<const Adapter> none;
  for (auto root = roots_.begin(); root != roots_.end();) {
    const auto& adapter = root->first.adapter;
    const bool has_none = !adapter.owner_before(none) && !none.owner_before(adapter);
    if (has_none || !adapter.expired()) {
      ++root;
      continue;
    }
    std::vector<Entry*> entries;
    for (Entry* const entry : uses_) {
      const Entry* top = entry;
      while (top->parent) top = top->parent;
      if (top->siblings == &root->second) entries.push_back(entry);
    }
    for (Entry* const entry : entries) remove(*entry);  // children come before their parents
    root = roots_.erase(root);
  }
}

}  // namespace gemlet
