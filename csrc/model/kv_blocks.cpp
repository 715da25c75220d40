#include "model/kv_blocks.h"

#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "base/fork_mutex.h"

namespace gemlet {

struct KvSlab {
  KvPool* pool;
  size_t kind;
  DeviceMemory memory;
  std::vector<int32_t> references;  // the number of references to each block; 0: the block is free
  std::vector<int32_t> kept;        // the number of these references that only keep the block
  int64_t free;                     // blocks

  int64_t blocks() const { return static_cast<int64_t>(references.size()); }
  bool is_free(int64_t index) const { return references[static_cast<size_t>(index)] == 0; }
};

namespace {

using Lock = std::lock_guard<std::mutex>;

// The place of a block. The distance between its heads is the size of that head in all blocks of the slab.
template <typename Block, typename Slab>
Block block_of(Slab& slab, int64_t head_bytes, int64_t index) {
  return {slab.memory.data() + index * head_bytes, slab.blocks() * head_bytes};
}

}  // namespace

KvBlockRef::~KvBlockRef() {
  if (slab_) slab_->pool->release(slab_, index_, is_kept_);
}

KvBlockRef KvBlockRef::share() const { return another(false); }
KvBlockRef KvBlockRef::keep() const { return another(true); }

KvBlockRef KvBlockRef::another(bool is_kept) const {
  if (!slab_) return {};
  const Lock lock(fork_safe_mutex());
  slab_->pool->count(*slab_, index_, 1, is_kept ? 1 : 0);
  return {slab_, index_, is_kept};
}

KvBlock KvBlockRef::read() const {
  return block_of<KvBlock>(std::as_const(*slab_), slab_->pool->layout_.kinds[slab_->kind].head_bytes, index_);
}

std::optional<WritableKvBlock> KvBlockRef::write() {
  const Lock lock(fork_safe_mutex());
  if (slab_->references[static_cast<size_t>(index_)] > 1) return std::nullopt;
  return block_of<WritableKvBlock>(*slab_, slab_->pool->layout_.kinds[slab_->kind].head_bytes, index_);
}

KvPool::KvPool(const ModelConfig& config, KvFormat format, Backend& backend)
    : layout_(config, format, backend), backend_(backend), slabs_(layout_.kinds.size()) {}

KvPool::~KvPool() = default;

void KvPool::take(size_t kind, int64_t most, std::vector<KvBlockRef>& blocks) {
  blocks.reserve(blocks.size() + static_cast<size_t>(most));
  const Lock lock(fork_safe_mutex());
  Run run = find_free(kind, most, blocks.empty() ? nullptr : &blocks.back());
  if (!run.slab) {
    KvSlab* const slab = add_slab(kind, most);
    run = {slab, 0, slab->blocks()};
  }
  for (int64_t i = 0; i < run.count; ++i) {
    run.slab->references[static_cast<size_t>(run.first + i)] = 1;
    blocks.push_back({run.slab, run.first + i});
  }
  run.slab->free -= run.count;
  used_bytes_ += run.count * layout_.kinds[kind].block_bytes();
}

// Chooses the free blocks after `last` if there are any, otherwise the shortest run of free blocks that is long enough,
// otherwise the longest run.
KvPool::Run KvPool::find_free(size_t kind, int64_t most, const KvBlockRef* last) const {
  const auto run_at = [&](KvSlab* slab, int64_t first) {
    int64_t count = 0;
    while (first + count < slab->blocks() && slab->is_free(first + count)) ++count;
    return Run{slab, first, count};
  };
  Run best = {};
  if (last && *last) best = run_at(last->slab_, last->index_ + 1);
  if (best.count == 0) {
    best = {};
    for (const auto& slab : slabs_[kind]) {
      for (int64_t first = 0; slab->free > 0 && first < slab->blocks(); ++first) {
        const Run run = run_at(slab.get(), first);
        if (run.count > 0 &&
            (best.count < most ? run.count > best.count : most <= run.count && run.count < best.count)) {
          best = run;
        }
        first += run.count;
      }
    }
  }
  best.count = std::min(best.count, most);
  return best;
}

KvSlab* KvPool::add_slab(size_t kind, int64_t blocks) {
  const int64_t block_bytes = layout_.kinds[kind].block_bytes();
  blocks = std::min(blocks, (limit_ - bytes_) / block_bytes);
  if (blocks < 1) {
    fail(ErrorCode::kMemory, "all ", bytes(), " bytes for keys and values are in use, of at most ", limit_.load(),
         "; end another sequence, or allow more");
  }
  auto slab = std::make_unique<KvSlab>();
  *slab = {this,
           kind,
           backend_.allocate(static_cast<size_t>(blocks * block_bytes)),
           std::vector<int32_t>(static_cast<size_t>(blocks), 0),
           std::vector<int32_t>(static_cast<size_t>(blocks), 0),
           blocks};
  slabs_[kind].push_back(std::move(slab));
  bytes_ += blocks * block_bytes;
  return slabs_[kind].back().get();
}

void KvPool::count(KvSlab& slab, int64_t index, int32_t references, int32_t kept) {
  int32_t& all = slab.references[static_cast<size_t>(index)];
  int32_t& keepers = slab.kept[static_cast<size_t>(index)];
  const bool was_only_kept = all > 0 && all == keepers;
  all += references;
  keepers += kept;
  const bool is_only_kept = all > 0 && all == keepers;
  if (was_only_kept != is_only_kept) {
    kept_bytes_ += (is_only_kept ? 1 : -1) * layout_.kinds[slab.kind].block_bytes();
  }
}

void KvPool::release(KvSlab* slab, int64_t index, bool is_kept) {
  std::unique_ptr<KvSlab> done;  // unmapped after the lock
  const Lock lock(fork_safe_mutex());
  count(*slab, index, -1, is_kept ? -1 : 0);
  if (slab->references[static_cast<size_t>(index)] > 0) return;
  const int64_t block_bytes = layout_.kinds[slab->kind].block_bytes();
  used_bytes_ -= block_bytes;
  if (++slab->free < slab->blocks()) return;
  bytes_ -= slab->blocks() * block_bytes;
  auto& slabs = slabs_[slab->kind];
  const auto found = std::find_if(slabs.begin(), slabs.end(), [&](const auto& one) { return one.get() == slab; });
  done = std::move(*found);
  slabs.erase(found);
}

void KvPool::copy(size_t kind, KvBlock from, WritableKvBlock to) {
  const KvLayout::Kind& sizes = layout_.kinds[kind];
  for (int64_t head = 0; head < sizes.heads(); ++head) {
    backend_.copy_bytes(from.head(head), sizes.head_bytes, to.head(head));
  }
}

void KvPool::download(size_t kind, KvBlock from, uint8_t* to) const {
  const KvLayout::Kind& sizes = layout_.kinds[kind];
  for (int64_t head = 0; head < sizes.heads(); ++head) {
    backend_.download(from.head(head), static_cast<size_t>(sizes.head_bytes), to + head * sizes.head_bytes);
  }
}

void KvPool::upload(size_t kind, const uint8_t* from, WritableKvBlock to) {
  const KvLayout::Kind& sizes = layout_.kinds[kind];
  for (int64_t head = 0; head < sizes.heads(); ++head) {
    backend_.upload(from + head * sizes.head_bytes, static_cast<size_t>(sizes.head_bytes), to.head(head));
  }
}

}  // namespace gemlet
