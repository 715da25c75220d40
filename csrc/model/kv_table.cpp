#include "model/kv_table.h"

#include <algorithm>

#include "base/error.h"

namespace gemlet {

void KvTable::Kind::sync() {
  blocks.reserve(refs.size());
  while (blocks.size() < refs.size()) blocks.push_back(refs[blocks.size()].read());
}

void KvTable::Kind::keep(size_t count) {
  refs.resize(std::min(refs.size(), count));
  blocks.resize(std::min(blocks.size(), count));
}

int64_t KvTable::bytes() const {
  int64_t bytes = 0;
  for (size_t kind = 0; kind < kinds_.size(); ++kind) {
    bytes += static_cast<int64_t>(kinds_[kind].refs.size()) * pool_->layout().kinds[kind].block_bytes();
  }
  return bytes;
}

KvTable KvTable::fork() const {
  KvTable copy(*pool_, drops_late_, spare_);
  copy.length_ = length_;
  for (size_t kind = 0; kind < kinds_.size(); ++kind) {
    const Kind& from = kinds_[kind];
    Kind& to = copy.kinds_[kind];
    to.first_block = from.first_block;
    const auto used = static_cast<size_t>((length_ + kKvBlockTokens - 1) / kKvBlockTokens - from.first_block);
    for (size_t i = 0; i < std::min(used, from.refs.size()); ++i) to.refs.push_back(from.refs[i].share());
    to.sync();
  }
  return copy;
}

std::vector<KvBlockRef> KvTable::share(int64_t index) const {
  std::vector<KvBlockRef> blocks;
  for (const Kind& kind : kinds_) {
    const int64_t place = index - kind.first_block;
    blocks.push_back(place < 0 ? KvBlockRef() : kind.refs[static_cast<size_t>(place)].share());
  }
  return blocks;
}

void KvTable::append(std::vector<KvBlockRef> blocks, int64_t tokens) {
  if (length_ % kKvBlockTokens != 0) fail(ErrorCode::kInternal, "a block was appended to one that is not full");
  const int64_t index = length_ / kKvBlockTokens;
  for (size_t i = 0; i < kinds_.size(); ++i) {
    Kind& kind = kinds_[i];
    kind.keep(static_cast<size_t>(index - kind.first_block));  // drops the blocks in reserve
    if (blocks[i]) {
      kind.refs.push_back(std::move(blocks[i]));
      kind.sync();
    } else {
      kind.keep(0);
      kind.first_block = index + 1;
    }
  }
  length_ += tokens;
  drop_unseen();
}

void KvTable::truncate(int64_t length) {
  if (length < 0 || length > length_) fail(ErrorCode::kInternal, "a table cannot be cut to more tokens than it has");
  const int64_t blocks = (length + kKvBlockTokens - 1) / kKvBlockTokens;
  for (Kind& kind : kinds_) {
    // Blocks after the end stay in reserve, except those that another table has too.
    auto count = static_cast<size_t>(std::max<int64_t>(blocks - kind.first_block, 0));
    while (count < kind.refs.size() && kind.refs[count].write()) ++count;
    kind.keep(count);
  }
  length_ = length;
  if (!complete()) fail(ErrorCode::kInternal, "a window has dropped tokens that are needed again");
}

KvView<const uint8_t> KvTable::view(size_t layer) const {
  const KvLayout::Place& place = pool_->layout().layers[layer];
  const Kind& kind = kinds_[place.kind];
  return {kind.blocks, kind.first_block, place.first_head};
}

bool KvTable::complete() const {
  for (size_t kind = 0; kind < kinds_.size(); ++kind) {
    if (kinds_[kind].first_block * kKvBlockTokens > pool_->layout().kinds[kind].oldest_seen(length_)) return false;
  }
  return true;
}

void KvTable::drop_unseen() {
  for (size_t i = 0; i < kinds_.size(); ++i) {
    Kind& kind = kinds_[i];
    const int64_t unseen =
        pool_->layout().kinds[i].oldest_seen(std::max<int64_t>(0, length_ - spare_)) / kKvBlockTokens -
        kind.first_block;
    const int64_t count = std::min(unseen, static_cast<int64_t>(kind.refs.size()));
    if (count <= 0) continue;
    kind.refs.erase(kind.refs.begin(), kind.refs.begin() + count);
    kind.blocks.erase(kind.blocks.begin(), kind.blocks.begin() + count);
    kind.first_block += count;
  }
}

KvGrowth::KvGrowth(KvTable& table, int64_t tokens) : table_(&table), tokens_(tokens) {
  if (!table.complete()) fail(ErrorCode::kInternal, "the table lacks tokens that its next token sees");
  table.drop_unseen();
  for (const KvTable::Kind& kind : table.kinds_) kinds_.push_back({kind.refs.size()});
  try {
    const int64_t last_block = (table.length_ + tokens - 1) / kKvBlockTokens;
    for (size_t kind = 0; kind < kinds_.size(); ++kind) grow(kind, last_block);
  } catch (...) {
    undo();
    throw;
  }
}

void KvGrowth::grow(size_t index, int64_t last_block) {
  KvTable::Kind& kind = table_->kinds_[index];
  KvPool& pool = *table_->pool_;
  const KvLayout::Kind& sizes = pool.layout().kinds[index];
  // The block that is not full yet belongs only to this table, or becomes a copy that does.
  const int64_t first_slot = table_->length_ / kKvBlockTokens - kind.first_block;
  const auto first = static_cast<size_t>(first_slot);
  if (table_->length_ % kKvBlockTokens != 0 && !kind.refs[first].write()) {
    std::vector<KvBlockRef> copy;
    pool.take(index, 1, copy);
    pool.copy(index, kind.blocks[first], *copy[0].write());
    kinds_[index].shared = std::exchange(kind.refs[first], std::move(copy[0]));
    kind.blocks[first] = kind.refs[first].read();
  }
  // Takes several blocks at once, because the system can give huge pages from 2 MB on: as many as the table has
  // already, but no more than the context can need.
  const int64_t have = static_cast<int64_t>(kind.refs.size()), needed = last_block - kind.first_block + 1 - have;
  const int64_t left = std::min(sizes.peak_blocks, sizes.context_blocks - kind.first_block) - have;
  int64_t wanted = std::clamp<int64_t>(std::min(have, left), needed, std::max(needed, sizes.slab_blocks()));
  while (static_cast<int64_t>(kind.refs.size()) < have + needed) {
    const size_t before = kind.refs.size();
    pool.take(index, std::min(wanted, sizes.slab_blocks()), kind.refs);
    wanted -= static_cast<int64_t>(kind.refs.size() - before);
  }
  kind.sync();
  for (int64_t i = first_slot; i <= last_block - kind.first_block; ++i) {
    const std::optional<WritableKvBlock> slot = kind.refs[static_cast<size_t>(i)].write();
    if (!slot) fail(ErrorCode::kInternal, "a block after the last token is shared");
    kinds_[index].slots.push_back(*slot);
  }
}

KvView<uint8_t> KvGrowth::slots(size_t layer) const {
  const KvLayout::Place& place = table_->pool_->layout().layers[layer];
  return {kinds_[place.kind].slots, table_->length_ / kKvBlockTokens, place.first_head};
}

void KvGrowth::commit() {
  table_->length_ += tokens_;
  if (!table_->drops_late_) table_->drop_unseen();
  table_ = nullptr;
}

void KvGrowth::undo() noexcept {
  if (!table_) return;
  for (size_t i = 0; i < kinds_.size(); ++i) {
    KvTable::Kind& kind = table_->kinds_[i];
    kind.keep(kinds_[i].old_count);
    if (!kinds_[i].shared) continue;
    const auto first = static_cast<size_t>(table_->length_ / kKvBlockTokens - kind.first_block);
    kind.refs[first] = std::move(kinds_[i].shared);
    kind.blocks[first] = kind.refs[first].read();
  }
  table_ = nullptr;
}

}  // namespace gemlet
