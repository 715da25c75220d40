// Keys and values that were computed before, found by the tokens they belong to: a tree whose edges are blocks of
// kKvBlockTokens tokens. Tokens are compared one by one, so that nobody can make two texts look the same. Only texts
// with the same adapter and the same salt share a tree.
//
// An entry holds references to blocks of the pool, which tables share. Under the byte limit, the entry that was not
// used for the longest time goes first, from the ends of the branches. Of a layer with a sliding window, an entry may
// lack the block; a text then begins at the longest prefix whose window is complete.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "model/adapter.h"
#include "model/kv_table.h"

namespace gemlet {

class PrefixCache {
 public:
  // Keeps at most so many bytes of blocks; 0: nothing.
  PrefixCache(const KvPool& pool, int64_t most_bytes);
  ~PrefixCache();

  struct Root {
    std::weak_ptr<const Adapter> adapter;
    uint64_t salt;
    bool operator<(const Root& other) const {
      if (adapter.owner_before(other.adapter)) return true;
      return !other.adapter.owner_before(adapter) && salt < other.salt;
    }
  };

  // Appends to an empty table the keys and values of as many of the first tokens as are known, whole blocks and at
  // least one token fewer than `ids` has. Returns how many tokens.
  int64_t restore(const Root& root, std::span<const int32_t> ids, KvTable& table);

  // Keeps the full blocks of a table that holds the first tokens of `ids`. `from`: blocks that are kept already.
  // Returns how many are kept now.
  int64_t keep(const Root& root, std::span<const int32_t> ids, const KvTable& table, int64_t from);

  // Gives up entries until at least so many bytes were freed, or nothing is left. Blocks that a table shares count,
  // too, though they stay. Returns whether anything was given up.
  bool give_up(int64_t bytes);
  // Gives up the entries of adapters that are gone.
  void forget_gone_adapters();

  int64_t bytes() const { return bytes_; }  // of the blocks that entries refer to

 private:
  struct Entry;
  using Children = std::map<std::vector<int32_t>, std::unique_ptr<Entry>>;
  struct Entry {
    Entry* parent;
    Children* siblings;                  // where this entry stands
    const std::vector<int32_t>* tokens;  // its key there
    std::vector<KvBlockRef> blocks;      // of each kind of layer
    int64_t bytes;
    Children children = {};
    std::list<Entry*>::iterator use = {};  // its place in uses_
  };

  void used(Entry& entry) { uses_.splice(uses_.end(), uses_, entry.use); }
  void remove(Entry& entry);  // without children

  const KvPool& pool_;
  const int64_t most_bytes_;
  int64_t bytes_ = 0;
  std::map<Root, Children> roots_;
  std::list<Entry*> uses_;  // the last one was used last. A parent stands behind its children.
};

}  // namespace gemlet
