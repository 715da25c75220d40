// The prefix cache on disk. One thread writes blocks of texts while the engine goes on, and reads blocks for texts that
// wait. It never needs Python's lock. It holds a reference to the blocks that it writes, so nobody changes them
// meanwhile.
//
// In a forked process the thread does not exist, so the engine makes another DiskCache.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/event.h"
#include "engine/disk_folder.h"

namespace gemlet {

class DiskCache {
 public:
  // `news` is notified when a text has been read.
  DiskCache(std::shared_ptr<DiskFolder> folder, KvPool& pool, Event& news);
  // Writes the blocks that still wait, for a few seconds at most.
  ~DiskCache();
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  // Queues the last block of a text with these numbers for writing. Does nothing if too much waits already.
  void write(const KvOwner& owner, std::span<const int32_t> numbers, const std::vector<KvBlockRef>& blocks);

  struct Block {
    std::vector<int32_t> numbers;  // the numbers of its 1 to 64 tokens
    std::vector<KvBlockRef> blocks;
  };
  // The part of a text that is being read. Whoever asked for it may drop it at any time.
  struct Reading {
    KvOwner owner;
    TextKey text;
    int64_t from;   // the first full blocks, which are known already
    int64_t known;  // tokens that are known already
    std::atomic<bool> is_done{false};
    std::vector<Block> found = {};  // the blocks after the first `from`, once it is done
  };
  std::shared_ptr<Reading> read(const KvOwner& owner, const TextKey& text, int64_t from, int64_t known);

  // Drops the blocks that wait to be written, and waits until the current work is done. Returns whether there was any.
  bool abandon();

 private:
  struct Write {
    KvOwner owner;
    std::vector<int32_t> numbers;
    std::vector<KvBlockRef> blocks;
    int64_t bytes;
  };
  using Clock = std::chrono::steady_clock;
  using Lock = std::unique_lock<std::mutex>;

  bool start(Lock& lock);
  void work();
  bool work_once(Lock& lock);  // false: nothing to do
  void do_write(const Write& write);
  void do_read(Reading& reading);
  bool read_block(const BlockName& name, std::span<const int32_t> text, const std::vector<bool>& wanted,
                  const KvOwner& owner, Block& block) const;

  const std::shared_ptr<DiskFolder> folder_;
  KvPool& pool_;
  Event& news_;
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  std::deque<Write> writes_;
  std::deque<std::shared_ptr<Reading>> readings_;
  int64_t waiting_bytes_ = 0;
  bool is_busy_ = false;
  std::optional<Clock::time_point> end_;  // if it is set, the thread has to end by this time
  std::thread thread_;
};

}  // namespace gemlet
