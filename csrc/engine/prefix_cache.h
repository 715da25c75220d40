// Keys and values that were computed before, found by the tokens they belong to: a tree whose edges are blocks of
// kKvBlockTokens tokens, or fewer where a text has ended. Tokens and the digests of media are compared number by number
// (text_key.h), so that nobody can make two texts look the same. Only texts with the same adapter and the same salt
// share a tree. No text begins within an image whose tokens see each other.
//
// A text may take a block in part: the table that takes it copies it before it writes. An entry holds references to
// blocks of the pool, which tables share. It has two parts: the blocks of layers that see everything, and those of
// layers with a sliding window. Only texts that go on within the window need the second part. If the cache is full, the
// part that was not used for the longest time is dropped first. An entry is dropped with both of its parts, and only
// after its children. A text begins at the longest prefix whose windows are complete.
//
// If there is a folder (disk_cache.h), a thread writes new entries to it in the background. Before a request starts,
// the blocks of its text that are in the folder are added to the tree.
//
// Any thread may call these functions. Each call is atomic.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "engine/disk_cache.h"
#include "engine/text_key.h"
#include "model/adapter.h"
#include "model/kv_table.h"

namespace gemlet {

class PrefixCache {
 public:
  struct Options {
    int64_t most_bytes = 0;  // limit for the kept blocks in bytes; 0: nothing is kept
    Digest model = {};       // the model's digest; zeros: not known, and then nothing is written to files
    std::shared_ptr<DiskFolder> folder = nullptr;  // null: none
  };
  // `news` is notified when a read from the disk is done.
  PrefixCache(KvPool& pool, const Options& options, Event& news);
  ~PrefixCache();

  struct Root {
    std::weak_ptr<const Adapter> adapter;
    uint64_t salt;
    bool operator<(const Root& other) const {
      if (adapter.owner_before(other.adapter)) return true;
      return !other.adapter.owner_before(adapter) && salt < other.salt;
    }
  };

  // Finds the first tokens of `text` that have kept keys and values, at most `most`. Appends these keys and values to
  // the empty `table`. Returns the number of these tokens.
  int64_t restore(const Root& root, const TextKey& text, int64_t most, KvTable& table);

  // Keeps the full blocks of `table`, which holds the first tokens of `text`. If `is_end` is true, it also keeps the
  // last block, even if that is not full. The first `from` blocks are kept already. Returns the number of full blocks
  // that are kept now.
  int64_t keep(const Root& root, const TextKey& text, const KvTable& table, int64_t from, bool is_end);

  // Starts to read the blocks of a text from the disk, if the disk may have more of them than the tree. Returns null
  // otherwise. add() puts the blocks into the tree once the read is done.
  std::shared_ptr<DiskCache::Reading> look_up(const Root& root, const TextKey& text);
  void add(const Root& root, const DiskCache::Reading& reading);
  // Drops the blocks that wait to be written to the disk. Returns whether there were any.
  bool abandon() { return disk_ && disk_->abandon(); }

  // Appends the kept keys and values of a text to an open file, as records. Returns the number of its tokens.
  int64_t save(const Root& root, const TextKey& text, int descriptor);
  // Keeps the records in the file from byte `at` on. Throws kModelFile if they are not records of this text and model,
  // and kMemory.
  int64_t load(const Root& root, const TextKey& text, int descriptor, int64_t at);

  // The kept text that has the most first tokens in common with `text`.
  struct Nearest {
    int64_t common = 0;  // the number of equal tokens
    // the number of them that a request can start with; the others lack blocks of layers with a window
    int64_t usable = 0;
    std::vector<int32_t> next;  // the tokens that follow in the kept text, at most kShown
  };
  static constexpr int64_t kShown = 16;
  Nearest nearest(const Root& root, const TextKey& text);

  // Drops parts of entries until at least this many bytes were dropped, or nothing is left. Blocks that a table shares
  // count too, although they stay in memory. Returns whether anything was dropped.
  bool give_up(int64_t bytes);
  // Drops the entries of adapters that no longer exist, and trees without entries.
  void forget_gone_adapters();
  // Drops all entries, and finishes the queued writes to the disk.
  void close();

  int64_t bytes() const;  // size of the blocks that entries refer to
  // Bytes of keys and values that this process has read from the disk and written there. Takes no lock.
  void count(int64_t& read, int64_t& written) const;

 private:
  struct Entry;
  using Lock = std::lock_guard<std::mutex>;
  using Numbers = std::vector<int32_t>;  // the numbers (text_key.h) of a block's tokens
  // No key is a prefix of another key.
  using Children = std::map<Numbers, std::unique_ptr<Entry>>;
  struct Use {
    uint64_t time = 0;
    std::list<Entry*>::iterator place = {};  // the place in the list of all entries
  };
  struct Entry {
    Entry* parent;
    Children* siblings;              // the map that this entry is in
    const Numbers* numbers;          // the key in that map
    std::vector<KvBlockRef> blocks;  // one for each kind of layer; blocks of kinds with a window may be missing
    Children children = {};
    Use whole = {}, window = {};  // `window` is used only if has_window
    bool has_window = false;
  };
  struct Path {
    std::vector<Entry*> entries;  // the last entry may be used only in part
    int64_t common = 0, usable = 0;
  };

  Path find(Children& children, const TextKey& text, int64_t most) const;
  Entry* put(Entry* parent, Children& children, std::span<const int32_t> numbers, std::vector<KvBlockRef> blocks,
             bool* is_new = nullptr);
  void fill(Entry& entry, std::vector<KvBlockRef> blocks);
  void use(const std::vector<Entry*>& path, int64_t length);
  void touch(std::list<Entry*>& uses, Use& use);
  void drop_window(Entry& entry);
  void remove(Entry& entry);  // also removes its children
  bool give_up_locked(int64_t bytes);
  std::optional<KvOwner> owner_of(const Root& root) const;

  KvPool& pool_;
  const int64_t most_bytes_;
  const Digest model_;
  const std::shared_ptr<DiskFolder> folder_;
  std::unique_ptr<DiskCache> disk_;
  mutable std::mutex mutex_;  // guards all members below
  int64_t bytes_ = 0;
  uint64_t time_ = 0;
  std::map<Root, Children> roots_;
  // In order of use: the most recently used entry is the last one. A parent comes after its children.
  std::list<Entry*> entries_;
  std::list<Entry*> windows_;  // the entries with blocks for layers with a window, in the same order
};

}  // namespace gemlet
