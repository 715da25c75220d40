// The blocks of all sequences of a model. A pool hands out blocks, counts the references to each, and takes them back.
//
// Blocks are allocated in slabs. In a slab the blocks of one head are neighbours, so that attention reads a run of them
// as one stretch of memory, which is a third faster than separate blocks. A slab goes back to the system when all of
// its blocks are free. Any thread may take, share and release blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/kv_layout.h"

namespace gemlet {

class KvPool;
struct KvSlab;

// A reference to a block. The block returns to its pool with the last reference. The pool must outlive it.
class KvBlockRef {
 public:
  KvBlockRef() = default;
  KvBlockRef(KvBlockRef&& other) noexcept { swap(other); }
  KvBlockRef& operator=(KvBlockRef&& other) noexcept {
    KvBlockRef old(std::move(other));
    swap(old);
    return *this;
  }
  ~KvBlockRef();

  explicit operator bool() const { return slab_ != nullptr; }
  KvBlockRef share() const;  // another reference to the same block
  // Another reference for the prefix cache, which keeps the block of an ended request. See KvPool::kept_bytes().
  KvBlockRef keep() const;
  KvBlock read() const;
  std::optional<WritableKvBlock> write();  // empty if another reference to the block exists

 private:
  friend class KvPool;
  KvBlockRef(KvSlab* slab, int64_t index, bool is_kept = false) : slab_(slab), index_(index), is_kept_(is_kept) {}
  KvBlockRef another(bool is_kept) const;
  void swap(KvBlockRef& other) noexcept {
    std::swap(slab_, other.slab_);
    std::swap(index_, other.index_);
    std::swap(is_kept_, other.is_kept_);
  }
  KvSlab* slab_ = nullptr;
  int64_t index_ = 0;
  bool is_kept_ = false;
};

class KvPool {
 public:
  KvPool(const ModelConfig& config, KvFormat format, Backend& backend);
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvLayout& layout() const { return layout_; }

  // Appends 1 to `most` neighbouring blocks of a kind to `blocks`. They come directly after the last block in `blocks`
  // if that memory is free. Free blocks are used before a new slab is allocated. Throws kMemory, and then `blocks` is
  // unchanged.
  void take(size_t kind, int64_t most, std::vector<KvBlockRef>& blocks);

  // to = from
  void copy(size_t kind, KvBlock from, WritableKvBlock to);
  // These copy the heads of a block, one after the other, from and to memory of the host [block_bytes()]. Any thread
  // may call them.
  void download(size_t kind, KvBlock from, uint8_t* to) const;
  void upload(size_t kind, const uint8_t* from, WritableKvBlock to);

  // Bytes of all slabs, of the blocks that have a reference, and of the blocks that only the prefix cache keeps.
  int64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  int64_t used_bytes() const { return used_bytes_.load(std::memory_order_relaxed); }
  int64_t kept_bytes() const { return kept_bytes_.load(std::memory_order_relaxed); }
  // The limit for bytes(): no slab is allocated beyond it.
  void set_limit(int64_t bytes) { limit_.store(bytes, std::memory_order_relaxed); }
  int64_t room() const { return limit_.load(std::memory_order_relaxed) - used_bytes(); }  // bytes left for more blocks

 private:
  friend class KvBlockRef;
  struct Run {
    KvSlab* slab;
    int64_t first, count;
  };
  Run find_free(size_t kind, int64_t most, const KvBlockRef* last) const;
  KvSlab* add_slab(size_t kind, int64_t blocks);
  void count(KvSlab& slab, int64_t index, int32_t references, int32_t kept);  // adds to the counts, under the lock
  void release(KvSlab* slab, int64_t index, bool is_kept);

  const KvLayout layout_;
  Backend& backend_;
  std::vector<std::vector<std::unique_ptr<KvSlab>>> slabs_;  // the slabs of each kind
  std::atomic<int64_t> bytes_{0}, used_bytes_{0}, kept_bytes_{0};
  std::atomic<int64_t> limit_{INT64_MAX};
};

}  // namespace gemlet
