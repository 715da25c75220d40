// The prefix cache on disk. One thread writes the blocks of ended requests while the engine runs, and reads blocks for
// waiting requests. The thread never needs Python's lock. It holds a reference to each block that it writes, so the
// block does not change meanwhile.
//
// A forked process has no such thread, so the engine makes another DiskCache there.
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
  // `news` is notified when a read is done.
  DiskCache(std::shared_ptr<DiskFolder> folder, KvPool& pool, Event& news);
  // First writes the queued blocks, for a few seconds at most.
  ~DiskCache();
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  // Queues the last block of the text with these numbers (text_key.h) for writing. Does nothing if the queue is too
  // long.
  void write(const KvOwner& owner, std::span<const int32_t> numbers, const std::vector<KvBlockRef>& blocks);

  struct Block {
    std::vector<int32_t> numbers;  // the numbers of the block's 1 to 64 tokens
    std::vector<KvBlockRef> blocks;
  };
  // A read of a text's blocks. The caller may drop it at any time.
  struct Reading {
    KvOwner owner;
    TextKey text;
    int64_t from;   // the number of full blocks at the start that are known already; the read begins after them
    int64_t known;  // the number of tokens that are known already
    std::atomic<bool> is_done{false};
    std::vector<Block> found = {};  // set when `is_done`: the blocks after the first `from` ones
  };
  std::shared_ptr<Reading> read(const KvOwner& owner, const TextKey& text, int64_t from, int64_t known);

  // Drops the queued writes and waits for the running one. Returns whether there were any.
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
  bool work_once(Lock& lock);  // false: there was nothing to do
  void do_write(const Write& write);
  void do_read(Reading& reading);
  bool read_block(const BlockName& name, std::span<const int32_t> text, const std::vector<bool>& wanted,
                  const KvOwner& owner, Block& block) const;

  const std::shared_ptr<DiskFolder> folder_;
  KvPool& pool_;
  Event& news_;
  std::mutex mutex_;  // guards all members below
  std::condition_variable changed_;
  std::deque<Write> writes_;
  std::deque<std::shared_ptr<Reading>> readings_;
  int64_t waiting_bytes_ = 0;
  bool is_busy_ = false;
  std::optional<Clock::time_point> end_;  // if it is set, the thread must end by this time
  std::thread thread_;
};

}  // namespace gemlet
