// The prefix cache on disk: one thread writes blocks of texts behind the engine's steps, and reads them for texts that
// wait. It never needs Python's lock. Blocks are read from memory that nobody writes to, because a reference to them is
// held here.
//
// In a forked process the thread does not exist, and the engine makes another one of these.
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
  // `news` is told when a text has been read.
  DiskCache(std::shared_ptr<DiskFolder> folder, KvPool& pool, Event& news);
  // Writes what waits, for a few seconds at most.
  ~DiskCache();
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  // Queues a block to be written: the last one of a text with these numbers. Does nothing if too much waits already.
  void write(const KvOwner& owner, std::span<const int32_t> numbers, const std::vector<KvBlockRef>& blocks);

  struct Block {
    std::vector<int32_t> numbers;  // the numbers of its 1 to 64 tokens
    std::vector<KvBlockRef> blocks;
  };
  // What is being read of a text. Its reader may forget it at any time.
  struct Reading {
    KvOwner owner;
    TextKey text;
    int64_t from;   // full blocks that are known already
    int64_t known;  // tokens that are known already
    std::atomic<bool> is_done{false};
    std::vector<Block> found = {};  // once it is done: the blocks behind `from`
  };
  std::shared_ptr<Reading> read(const KvOwner& owner, const TextKey& text, int64_t from, int64_t known);

  // Forgets what waits to be written, and waits for what is being done. Returns whether there was anything.
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
  std::optional<Clock::time_point> end_;  // set: it is to end, at this time at the latest
  std::thread thread_;
};

}  // namespace gemlet
