// The keys and values of one sequence, as tables of blocks: one for each kind of layer.
#pragma once

#include <utility>
#include <vector>

#include "model/kv_blocks.h"

namespace gemlet {

class KvTable {
 public:
  // The table drops blocks that no later token sees at the end of a pass. With `drops_late` it drops them at the start
  // of the next pass, so that they can be shared before. truncate() can always remove the last `spare` tokens.
  explicit KvTable(KvPool& pool, bool drops_late = false, int64_t spare = 0)
      : pool_(&pool), kinds_(pool.layout().kinds.size()), drops_late_(drops_late), spare_(spare) {}

  int64_t length() const { return length_; }  // tokens
  int64_t bytes() const;                      // size of the table's blocks, including shared blocks

  // A table with the same tokens, which shares all blocks. A block that is not full is copied before one of the tables
  // appends to it.
  KvTable fork() const;

  // References to the blocks of tokens [64 index, 64 index + 64), one for each kind of layer; the last block may hold
  // fewer. A reference is empty if the table has dropped the block.
  std::vector<KvBlockRef> share(int64_t index) const;
  // Appends the first 1 to 64 tokens of blocks that another table has shared. Blocks of a kind with a window may be
  // missing if no later token sees them. The table's length must be a multiple of 64.
  void append(std::vector<KvBlockRef> blocks, int64_t tokens = kKvBlockTokens);
  // Removes tokens at the end, so that `length` tokens are left. A table with `drops_late` can remove all tokens of its
  // last pass, because it still has the blocks that the first of these tokens saw.
  void truncate(int64_t length);
  bool complete() const;  // whether the table has all tokens that the next token sees

  // The blocks of a layer. Valid until the table changes.
  KvView<const uint8_t> view(size_t layer) const;

 private:
  friend class KvGrowth;
  struct Kind {
    int64_t first_block = 0;
    std::vector<KvBlockRef> refs;  // The first one is first_block. Blocks after the last token are a reserve.
    std::vector<KvBlock> blocks;   // the addresses of the blocks in refs
    void sync();                   // adds the addresses of new references to `blocks`
    void keep(size_t count);       // keeps the first `count` blocks
  };
  void drop_unseen();

  KvPool* pool_;
  std::vector<Kind> kinds_;
  int64_t length_ = 0;
  bool drops_late_;
  int64_t spare_;
};

// Room in a table for the tokens of one pass, and the right to write there. Without commit(), the table stays
// unchanged.
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
  // The blocks of a layer to which the new tokens are written.
  KvView<uint8_t> slots(size_t layer) const;

  // Adds the new tokens to the table, after they were written. Then drops blocks that no later token sees.
  void commit();

 private:
  struct Kind {
    size_t old_count;        // the number of blocks before the growth
    KvBlockRef shared = {};  // a block that another table has too, and that was replaced by a copy
    std::vector<WritableKvBlock> slots = {};
  };
  void grow(size_t kind, int64_t last_block);
  void undo() noexcept;

  KvTable* table_;
  int64_t tokens_ = 0;
  std::vector<Kind> kinds_;
};

}  // namespace gemlet
