#include "engine/prefix_cache.h"

#include <sys/stat.h>

#include <algorithm>

#include "base/error.h"

namespace gemlet {
namespace {

bool begins_with(std::span<const int32_t> text, std::span<const int32_t> beginning) {
  return common_numbers(text, beginning) == static_cast<int64_t>(beginning.size());
}

}  // namespace

PrefixCache::PrefixCache(KvPool& pool, const Options& options, Event& news)
    : pool_(pool), most_bytes_(options.most_bytes), model_(options.model), folder_(options.folder) {
  if (options.folder) disk_ = std::make_unique<DiskCache>(options.folder, pool, news);
}
PrefixCache::~PrefixCache() = default;

void PrefixCache::count(int64_t& read, int64_t& written) const {
  if (folder_) folder_->count(read, written);
}

int64_t PrefixCache::bytes() const {
  const Lock lock(mutex_);
  return bytes_;
}

// The entries with the first tokens of a text, and how many of these a text can begin with, at most `most`.
PrefixCache::Path PrefixCache::find(Children& roots, const TextKey& text, int64_t most) const {
  Path path;
  Children* children = &roots;
  while (path.common < text.tokens()) {
    const auto index = static_cast<int64_t>(path.entries.size());
    const std::span<const int32_t> block = text.block(index);
    // In the order of the keys, the one with the longest common beginning is a neighbour of the block's place.
    const auto behind = children->lower_bound({block.begin(), block.end()});
    Entry* best = nullptr;
    int64_t longest = 0;
    const auto look = [&](Children::iterator place) {
      const int64_t common = common_numbers(place->first, block);
      if (common > longest) best = place->second.get();
      longest = std::max(longest, common);
    };
    if (behind != children->end()) look(behind);
    if (behind != children->begin()) look(std::prev(behind));
    const int64_t tokens = TextKey::tokens_in(block.first(static_cast<size_t>(longest)));
    if (tokens == 0) break;
    path.entries.push_back(best);
    path.common += tokens;
    if (tokens < kKvBlockTokens) break;
    children = &best->children;
  }
  const std::vector<KvLayout::Kind>& kinds = pool_.layout().kinds;
  std::vector<int64_t> first(kinds.size(), 0);  // the first block of those that are there without a gap up to here
  for (size_t i = 0; i < path.entries.size(); ++i) {
    const int64_t end = text.whole(std::min({static_cast<int64_t>(i + 1) * kKvBlockTokens, path.common, most}));
    bool is_complete = true;
    for (size_t kind = 0; kind < kinds.size(); ++kind) {
      if (!path.entries[i]->blocks[kind]) first[kind] = static_cast<int64_t>(i) + 1;
      is_complete = is_complete && first[kind] * kKvBlockTokens <= kinds[kind].oldest_seen(end);
    }
    if (is_complete) path.usable = std::max(path.usable, end);
  }
  return path;
}

int64_t PrefixCache::restore(const Root& root, const TextKey& text, int64_t most, KvTable& table) {
  const Lock lock(mutex_);
  const auto found = roots_.find(root);
  if (found == roots_.end()) return 0;
  Path path = find(found->second, text, most);
  path.entries.resize(static_cast<size_t>((path.usable + kKvBlockTokens - 1) / kKvBlockTokens));
  use(path.entries, path.usable);
  for (const Entry* const entry : path.entries) {
    std::vector<KvBlockRef> blocks;
    for (const KvBlockRef& block : entry->blocks) blocks.push_back(block.share());
    table.append(std::move(blocks), std::min(kKvBlockTokens, path.usable - table.length()));
  }
  return path.usable;
}

int64_t PrefixCache::keep(const Root& root, const TextKey& text, const KvTable& table, int64_t from, bool is_end) {
  const int64_t full = table.length() / kKvBlockTokens;
  const int64_t end = is_end ? table.length() : full * kKvBlockTokens;
  if (most_bytes_ == 0 || end <= from * kKvBlockTokens) return full;
  const Lock lock(mutex_);
  const std::optional<KvOwner> owner = owner_of(root);
  Children* children = &roots_[root];
  std::vector<Entry*> path;
  for (int64_t index = 0; index * kKvBlockTokens < end; ++index) {
    Entry* const parent = path.empty() ? nullptr : path.back();
    const std::span<const int32_t> numbers = text.block(index, end);
    if (index < from) {
      const auto there = children->find({numbers.begin(), numbers.end()});
      if (there == children->end()) break;  // it was given up meanwhile, with all its descendants
      path.push_back(there->second.get());
    } else {
      bool is_new = false;
      path.push_back(put(parent, *children, numbers, table.share(index), &is_new));
      if (disk_ && is_new && owner) {
        disk_->write(*owner, text.first(std::min(end, (index + 1) * kKvBlockTokens)), path.back()->blocks);
      }
    }
    children = &path.back()->children;
  }
  use(path, end);
  if (bytes_ > most_bytes_) give_up_locked(bytes_ - most_bytes_);
  return full;
}

// Returns the entry that begins with these numbers, which may be longer. Otherwise makes an entry. It replaces an entry
// whose numbers are the beginning of these.
PrefixCache::Entry* PrefixCache::put(Entry* parent, Children& children, std::span<const int32_t> numbers,
                                     std::vector<KvBlockRef> blocks, bool* is_new) {
  const auto behind = children.lower_bound({numbers.begin(), numbers.end()});
  if (behind != children.end() && begins_with(behind->first, numbers)) {
    Entry& entry = *behind->second;
    if (entry.numbers->size() == numbers.size()) fill(entry, std::move(blocks));
    return &entry;
  }
  if (behind != children.begin()) {
    const auto before = std::prev(behind);
    if (begins_with(numbers, before->first)) remove(*before->second);
  }
  const auto place = children.emplace_hint(behind, Numbers(numbers.begin(), numbers.end()), nullptr);
  place->second = std::make_unique<Entry>(Entry{parent, &children, &place->first, {}});
  Entry& entry = *place->second;
  entry.blocks.resize(pool_.layout().kinds.size());
  entry.whole.place = entries_.insert(entries_.end(), &entry);
  fill(entry, std::move(blocks));
  if (is_new) *is_new = true;
  return &entry;
}

// Takes the blocks that the entry lacks.
void PrefixCache::fill(Entry& entry, std::vector<KvBlockRef> blocks) {
  for (size_t kind = 0; kind < blocks.size(); ++kind) {
    if (entry.blocks[kind] || !blocks[kind]) continue;
    entry.blocks[kind] = blocks[kind].keep();
    bytes_ += pool_.layout().kinds[kind].block_bytes();
    if (pool_.layout().kinds[kind].window == 0 || entry.has_window) continue;
    entry.has_window = true;
    entry.window = {++time_, windows_.insert(windows_.end(), &entry)};
  }
}

void PrefixCache::touch(std::list<Entry*>& uses, Use& use) {
  use.time = ++time_;
  uses.splice(uses.end(), uses, use.place);
}

// Marks the first `length` tokens of a path as used now.
void PrefixCache::use(const std::vector<Entry*>& path, int64_t length) {
  int64_t oldest = length;
  for (const KvLayout::Kind& kind : pool_.layout().kinds) {
    if (kind.window > 0) oldest = std::min(oldest, kind.oldest_seen(length));
  }
  for (size_t i = path.size(); i-- > 0;) {
    touch(entries_, path[i]->whole);
    if (path[i]->has_window && static_cast<int64_t>(i + 1) * kKvBlockTokens > oldest) touch(windows_, path[i]->window);
  }
}

PrefixCache::Nearest PrefixCache::nearest(const Root& root, const TextKey& text) {
  const Lock lock(mutex_);
  Nearest nearest;
  const auto found = roots_.find(root);
  if (found == roots_.end()) return nearest;
  const Path path = find(found->second, text, text.tokens());
  nearest.common = path.common;
  nearest.usable = path.usable;
  const int64_t in_last = path.common - (static_cast<int64_t>(path.entries.size()) - 1) * kKvBlockTokens;
  const Children* children = &found->second;
  if (!path.entries.empty()) {
    const Entry& last = *path.entries.back();
    nearest.next = TextKey::ids_in(std::span(*last.numbers).subspan(TextKey::numbers_of(*last.numbers, in_last)));
    children = &last.children;
  }
  while (static_cast<int64_t>(nearest.next.size()) < kShown && !children->empty()) {
    const Entry& entry = *children->begin()->second;
    const std::vector<int32_t> ids = TextKey::ids_in(*entry.numbers);
    nearest.next.insert(nearest.next.end(), ids.begin(), ids.end());
    children = &entry.children;
  }
  nearest.next.resize(std::min(nearest.next.size(), static_cast<size_t>(kShown)));
  return nearest;
}

bool PrefixCache::give_up(int64_t bytes) {
  const Lock lock(mutex_);
  return give_up_locked(bytes);
}

// A child is never used later than its parent, so the first entry has no children.
bool PrefixCache::give_up_locked(int64_t bytes) {
  const int64_t before = bytes_;
  while (!entries_.empty() && before - bytes_ < bytes) {
    Entry& entry = *entries_.front();
    if (!windows_.empty() && windows_.front()->window.time < entry.whole.time) {
      drop_window(*windows_.front());
    } else {
      remove(entry);
    }
  }
  return bytes_ < before;
}

void PrefixCache::drop_window(Entry& entry) {
  if (!entry.has_window) return;
  entry.has_window = false;
  windows_.erase(entry.window.place);
  for (size_t kind = 0; kind < entry.blocks.size(); ++kind) {
    const KvLayout::Kind& sizes = pool_.layout().kinds[kind];
    if (sizes.window == 0 || !entry.blocks[kind]) continue;
    entry.blocks[kind] = KvBlockRef();
    bytes_ -= sizes.block_bytes();
  }
}

void PrefixCache::remove(Entry& entry) {
  while (!entry.children.empty()) remove(*entry.children.begin()->second);
  drop_window(entry);
  for (size_t kind = 0; kind < entry.blocks.size(); ++kind) {
    if (entry.blocks[kind]) bytes_ -= pool_.layout().kinds[kind].block_bytes();
  }
  entries_.erase(entry.whole.place);
  Children* const siblings = entry.siblings;
  siblings->erase(siblings->find(*entry.numbers));
}

void PrefixCache::close() {
  std::unique_ptr<DiskCache> disk;  // ends after the lock
  {
    const Lock lock(mutex_);
    disk = std::move(disk_);
    while (!entries_.empty()) remove(*entries_.front());
    roots_.clear();
  }
}

// --- On disk --------------------------------------------------------------------------------------------------------

// The owner of a text's records on disk; nothing if other processes could not use them.
std::optional<KvOwner> PrefixCache::owner_of(const Root& root) const {
  KvOwner owner = {model_, {}, root.salt};
  if (const std::shared_ptr<const Adapter> adapter = root.adapter.lock()) {
    owner.adapter = adapter->digest();
    if (owner.adapter == Digest()) return std::nullopt;
  }
  return owner.model == Digest() ? std::nullopt : std::make_optional(owner);
}

std::shared_ptr<DiskCache::Reading> PrefixCache::look_up(const Root& root, const TextKey& text) {
  const Lock lock(mutex_);
  const std::optional<KvOwner> owner = owner_of(root);
  if (!disk_ || !owner) return nullptr;
  const int64_t most = text.whole(text.tokens() - 1);
  const int64_t known = find(roots_[root], text, most).usable;
  return known >= most ? nullptr : disk_->read(*owner, text, known / kKvBlockTokens, known);
}

void PrefixCache::add(const Root& root, const DiskCache::Reading& reading) {
  if (reading.found.empty() || most_bytes_ == 0) return;
  const Lock lock(mutex_);
  Children* children = &roots_[root];
  std::vector<Entry*> path;
  for (int64_t index = 0; index < reading.from; ++index) {
    const std::span<const int32_t> numbers = reading.text.block(index);
    const auto there = children->find({numbers.begin(), numbers.end()});
    if (there == children->end()) return;  // it was given up meanwhile
    path.push_back(there->second.get());
    children = &path.back()->children;
  }
  for (const DiskCache::Block& block : reading.found) {
    std::vector<KvBlockRef> blocks;
    for (const KvBlockRef& one : block.blocks) blocks.push_back(one.share());
    path.push_back(put(path.empty() ? nullptr : path.back(), *children, block.numbers, std::move(blocks)));
    children = &path.back()->children;
  }
  use(path, static_cast<int64_t>(path.size()) * kKvBlockTokens);
  if (bytes_ > most_bytes_) give_up_locked(bytes_ - most_bytes_);
}

int64_t PrefixCache::save(const Root& root, const TextKey& text, int descriptor) {
  const std::optional<KvOwner> owner = owner_of(root);
  if (!owner) return 0;
  KvTable table(pool_);
  const int64_t length = restore(root, text, text.tokens(), table);
  for (int64_t at = 0; at < length; at += kKvBlockTokens) {
    const std::span<const int32_t> numbers = text.first(std::min(at + kKvBlockTokens, length));
    const std::vector<uint8_t> record = encode_record(pool_, *owner, numbers, table.share(at / kKvBlockTokens));
    if (!write_fully(descriptor, record)) fail(ErrorCode::kModelFile, "cannot be written; is the disk full?");
  }
  return length;
}

int64_t PrefixCache::load(const Root& root, const TextKey& text, int descriptor, int64_t at) {
  const std::optional<KvOwner> owner = owner_of(root);
  struct stat status;
  if (!owner || fstat(descriptor, &status) != 0 || at == status.st_size) return 0;
  const std::vector<bool> all(pool_.layout().kinds.size(), true);
  KvTable table(pool_, true);
  while (at < status.st_size) {
    const auto record = KvRecord::open(descriptor, at, status.st_size, pool_, *owner);
    std::vector<KvBlockRef> blocks;
    const bool is_next =
        record && table.length() % kKvBlockTokens == 0 && TextKey::tokens_in(record->before()) == table.length() &&
        begins_with(text.first(text.tokens()), record->numbers()) && record->read(descriptor, all, pool_, blocks);
    if (!is_next) {
      fail(ErrorCode::kModelFile, "is damaged: what is at byte ", at, " are not the keys and values of its text");
    }
    table.append(std::move(blocks), TextKey::tokens_in(record->own_numbers()));
    at += record->bytes();
  }
  if (!table.complete()) fail(ErrorCode::kModelFile, "is damaged: it lacks keys and values of its text");
  keep(root, text, table, 0, true);
  return table.length();
}

void PrefixCache::forget_gone_adapters() {
  const Lock lock(mutex_);
  const std::weak_ptr<const Adapter> none;
  for (auto root = roots_.begin(); root != roots_.end();) {
    if (root->second.empty()) {
      root = roots_.erase(root);
      continue;
    }
    const auto& adapter = root->first.adapter;
    const bool has_none = !adapter.owner_before(none) && !none.owner_before(adapter);
    if (has_none || !adapter.expired()) {
      ++root;
      continue;
    }
    std::vector<Entry*> gone;
    for (Entry* const entry : entries_) {
      const Entry* top = entry;
      while (top->parent) top = top->parent;
      if (top->siblings == &root->second) gone.push_back(entry);
    }
    for (Entry* const entry : gone) remove(*entry);  // children come before their parents
    root = roots_.erase(root);
  }
}

}  // namespace gemlet
