// The keys and values of one sequence, as tables of blocks: one for each kind of layer.
#pragma once

#include <utility>
#include <vector>

#include "model/kv_blocks.h"

namespace gemlet {

class KvTable {
 public:
  // Blocks that no later token sees are dropped when a pass is over, or, if `drops_late`, when the next pass begins, so
  // that there is time to share them. truncate() can always remove the last `spare` tokens.
  explicit KvTable(KvPool& pool, bool drops_late = false, int64_t spare = 0)
      : pool_(&pool), kinds_(pool.layout().kinds.size()), drops_late_(drops_late), spare_(spare) {}

  int64_t length() const { return length_; }  // tokens
  int64_t bytes() const;                      // size of its blocks, including those that other tables share

  // A table with the same tokens. Both share all blocks. Whoever appends first copies the last block if it is not full.
  KvTable fork() const;

  // References to the blocks of tokens [64 index, 64 index + 64), one for each kind of layer; the last block may hold
  // fewer. A reference is empty if the table has dropped the block.
  std::vector<KvBlockRef> share(int64_t index) const;
  // Appends the first 1 to 64 tokens of blocks that a table has shared. A kind with a window may lack those that no
  // later token will see. The length must be a multiple of 64.
  void append(std::vector<KvBlockRef> blocks, int64_t tokens = kKvBlockTokens);
  // Removes the last tokens, so that `length` are left. A table that drops late can remove the tokens of its last pass,
  // because it still has what the first of them saw.
  void truncate(int64_t length);
  bool complete() const;  // whether it has all tokens that the next one sees

  // The blocks of a layer. Valid until the table changes.
  KvView<const uint8_t> view(size_t layer) const;

 private:
  friend class KvGrowth;
  struct Kind {
    int64_t first_block = 0;
    std::vector<KvBlockRef> refs;  // begins with first_block. Blocks after the last token are a reserve.
    std::vector<KvBlock> blocks;   // where the blocks of refs are
    void sync();                   // adds to `blocks` the places of references that were added
    void keep(size_t count);       // keeps the first `count` blocks
  };
  void drop_unseen();

  KvPool* pool_;
  std::vector<Kind> kinds_;
  int64_t length_ = 0;
  bool drops_late_;
  int64_t spare_;
};

// Room in a table for the tokens of one pass, and the right to write there. Without commit(), the table stays as it
// was.
class KvGrowth {
 public:
  KvGrowth(KvTable& table, int64_t tokens);  // throws kMemory
  KvGrowth(KvGrowth&& other) noexcept : table_(std::exchange(other.table_, nullptr)) {
    tokens_ = other.tokens_;
    kinds_ = std::move(other.kinds_);
  }
  KvGrowth& operator=(KvGrowth&&) = delete;
  ~KvGrowth() { undo(); }

  const KvTable& table() const { return *table_; }
  // The blocks of a layer that the new tokens go to.
  KvView<uint8_t> slots(size_t layer) const;

  // Says that the new tokens have been written. From now on the table contains them, and blocks that no later token
  // sees are dropped.
  void commit();

 private:
  struct Kind {
    size_t old_count;        // the number of blocks that the table had
    KvBlockRef shared = {};  // the block that was replaced by a copy, because another table has it too
    std::vector<WritableKvBlock> slots = {};
  };
  void grow(size_t kind, int64_t last_block);
  void undo() noexcept;

  KvTable* table_;
  int64_t tokens_ = 0;
  std::vector<Kind> kinds_;
};

}  // namespace gemlet
