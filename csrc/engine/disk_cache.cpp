#include "engine/disk_cache.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "base/error.h"

namespace gemlet {
namespace {

constexpr int64_t kMostWaiting = int64_t{256} << 20;  // bytes to be written
constexpr std::chrono::seconds kLastWrites(5);

class File {
 public:
  File(const DiskFolder& folder, const BlockName& name) : descriptor_(folder.open(name, bytes_)) {}
  ~File() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  explicit operator bool() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
  const int descriptor_;
};

}  // namespace

DiskCache::DiskCache(std::shared_ptr<DiskFolder> folder, KvPool& pool, Event& news)
    : folder_(std::move(folder)), pool_(pool), news_(news) {}

DiskCache::~DiskCache() {
  {
    const Lock lock(mutex_);
    end_ = Clock::now() + kLastWrites;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// If the system grants no thread, the caller does the work.
bool DiskCache::start(Lock& lock) {
  try {
    if (!thread_.joinable()) thread_ = std::thread(&DiskCache::work, this);
    changed_.notify_all();
    return true;
  } catch (const std::system_error&) {
    while (work_once(lock)) {
    }
    return false;
  }
}

void DiskCache::write(const KvOwner& owner, std::span<const int32_t> numbers, const std::vector<KvBlockRef>& blocks) {
  Write write = {owner, {numbers.begin(), numbers.end()}, {}, 0};
  for (size_t kind = 0; kind < blocks.size(); ++kind) {
    if (blocks[kind]) write.bytes += pool_.layout().kinds[kind].block_bytes();
    write.blocks.push_back(blocks[kind].keep());
  }
  Lock lock(mutex_);
  if (end_ || waiting_bytes_ + write.bytes > kMostWaiting) return;
  waiting_bytes_ += write.bytes;
  writes_.push_back(std::move(write));
  start(lock);
}

std::shared_ptr<DiskCache::Reading> DiskCache::read(const KvOwner& owner, const TextKey& text, int64_t from,
                                                    int64_t known) {
  const std::shared_ptr<Reading> reading(new Reading{owner, text, from, known});
  Lock lock(mutex_);
  readings_.push_back(reading);
  start(lock);
  return reading;
}

bool DiskCache::abandon() {
  std::deque<Write> writes;  // freed after the lock
  Lock lock(mutex_);
  std::swap(writes, writes_);
  waiting_bytes_ = 0;
  const bool had_any = !writes.empty() || is_busy_;
  changed_.wait(lock, [&] { return !is_busy_; });
  return had_any;
}

void DiskCache::work() {
  Lock lock(mutex_);
  for (;;) {
    if (end_ && ((writes_.empty() && readings_.empty()) || Clock::now() > *end_)) return;
    if (!work_once(lock)) changed_.wait(lock);
  }
}

// Reads for waiting requests come before writes.
bool DiskCache::work_once(Lock& lock) {
  if (readings_.empty() && writes_.empty()) return false;
  std::shared_ptr<Reading> reading;
  std::optional<Write> write;
  if (!readings_.empty()) {
    reading = std::move(readings_.front());
    readings_.pop_front();
  } else {
    write = std::move(writes_.front());
    writes_.pop_front();
    waiting_bytes_ -= write->bytes;
  }
  is_busy_ = true;
  lock.unlock();
  try {
    if (write) do_write(*write);
    if (reading && reading.use_count() > 1) do_read(*reading);  // else nobody waits for it any more
  } catch (const std::exception&) {                             // no memory for it: the text is computed, or not kept
  }
  if (reading) {
    reading->is_done.store(true, std::memory_order_release);
    reading.reset();
    news_.notify();
  }
  write.reset();
  lock.lock();
  is_busy_ = false;
  changed_.notify_all();
  return true;
}

void DiskCache::do_write(const Write& write) {
  const std::span<const int32_t> text = write.numbers;
  BlockName name;
  for (size_t end = 0; end < text.size();) {
    end += TextKey::numbers_of(text.subspan(end), kKvBlockTokens);
    name = DiskFolder::name_of(write.owner, name, text.first(end));
  }
  const std::vector<uint8_t> bytes = encode_record(pool_, write.owner, text, write.blocks);
  if (!folder_->has(name, static_cast<int64_t>(bytes.size()))) static_cast<void>(folder_->write(name, bytes));
}

// Whether the file has a block of a text that goes on like `text`. If so, reads its blocks of the kinds that are
// wanted, which may be none. A file of this name with any other content is damaged.
bool DiskCache::read_block(const BlockName& name, std::span<const int32_t> text, const std::vector<bool>& wanted,
                           const KvOwner& owner, Block& block) const {
  const File file(*folder_, name);
  if (!file) return false;
  const std::optional<KvRecord> record = KvRecord::open(file.descriptor(), 0, file.bytes(), pool_, owner);
  if (!record || record->bytes() != file.bytes()) {
    folder_->remove(name);
    return false;
  }
  const std::span<const int32_t> before = record->before(), own = record->own_numbers();
  if (common_numbers(before, text) != static_cast<int64_t>(before.size())) return false;
  if (!record->read(file.descriptor(), wanted, pool_, block.blocks)) {
    folder_->remove(name);
    return false;
  }
  for (const KvBlockRef& one : block.blocks) {
    if (one) folder_->add_read(pool_.layout().kinds[static_cast<size_t>(&one - block.blocks.data())].block_bytes());
  }
  block.numbers.assign(own.begin(), own.end());
  if (std::find(wanted.begin(), wanted.end(), true) != wanted.end()) folder_->mark_used(file.descriptor());
  return true;
}

// First finds how far the blocks lead, then reads them. For layers with a window, it reads only those that the next
// token sees.
void DiskCache::do_read(Reading& reading) {
  const std::vector<KvLayout::Kind>& kinds = pool_.layout().kinds;
  const TextKey& text = reading.text;
  const std::span<const int32_t> all = text.first(text.tokens());
  const std::vector<bool> none(kinds.size(), false);
  std::vector<BlockName> names;
  BlockName name;
  int64_t common = 0;
  while (common + kKvBlockTokens <= text.tokens()) {
    const BlockName next = DiskFolder::name_of(reading.owner, name, text.first(common + kKvBlockTokens));
    if (common >= reading.from * kKvBlockTokens) {
      Block block;
      const std::span<const int32_t> own = text.block(common / kKvBlockTokens);
      if (!read_block(next, all, none, reading.owner, block)) break;
      if (!std::equal(own.begin(), own.end(), block.numbers.begin(), block.numbers.end())) break;
      names.push_back(next);
    }
    name = next;
    common += kKvBlockTokens;
  }
  // The block that has the most of the following tokens.
  if (common < text.tokens()) {
    const std::span<const int32_t> rest = text.block(common / kKvBlockTokens);
    const uint64_t before = DiskFolder::name_of(reading.owner, name, all).before;
    int64_t longest = 0;
    BlockName best;
    for (const BlockName& next : folder_->following(before)) {
      Block block;
      if (next.numbers <= name.numbers || !read_block(next, all, none, reading.owner, block)) continue;
      const int64_t found = common_numbers(block.numbers, rest);
      if (found > longest) best = next;
      longest = std::max(longest, found);
    }
    const int64_t tokens = TextKey::tokens_in(rest.first(static_cast<size_t>(longest)));
    if (tokens > 0) names.push_back(best);
    common += tokens;
  }
  if (common <= reading.known) return;
  for (size_t i = 0; i < names.size(); ++i) {
    const int64_t end = (reading.from + static_cast<int64_t>(i) + 1) * kKvBlockTokens;
    std::vector<bool> wanted;
    for (const KvLayout::Kind& kind : kinds) {
      // The text that goes on from here has at least one token to compute.
      const int64_t length = text.whole(std::min(common, text.tokens() - 1));
      wanted.push_back(kind.window == 0 || end > kind.oldest_seen(length));
    }
    Block block;
    if (!read_block(names[i], all, wanted, reading.owner, block)) return;
    reading.found.push_back(std::move(block));
  }
}

}  // namespace gemlet
