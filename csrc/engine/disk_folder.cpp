#include "engine/disk_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <random>
#include <unordered_map>

#include "base/checksum.h"
#include "base/error.h"

namespace gemlet {
namespace {

constexpr char kTemporary[] = ".gemlet-";
constexpr int64_t kCountAgain = 64;      // writes until entries are counted again, because other processes write too
constexpr int64_t kAbandoned = 15 * 60;  // seconds after which a temporary file belongs to no process any more

bool is_own_file(const struct stat& status) { return S_ISREG(status.st_mode) && status.st_uid == geteuid(); }

}  // namespace

std::string BlockName::text() const {
  char text[64];
  std::snprintf(text, sizeof(text), "%016llx-%016llx-%08llx.kv", static_cast<unsigned long long>(before),
                static_cast<unsigned long long>(whole), static_cast<unsigned long long>(numbers));
  return text;
}

bool BlockName::parse(const std::string& text, BlockName& name) {
  unsigned long long before = 0, whole = 0, numbers = 0;
  if (std::sscanf(text.c_str(), "%16llx-%16llx-%8llx.kv", &before, &whole, &numbers) != 3) return false;
  name = {before, whole, static_cast<int64_t>(numbers)};
  return name.text() == text;
}

struct DiskFolder::Entry {
  BlockName name;
  int64_t bytes = 0, used = 0;  // used: nanoseconds
};

class DiskFolder::Part {
 public:
  static constexpr int kCount = 256;
  static int of(uint64_t before) { return static_cast<int>(before >> 56); }

  Part(const DiskFolder& folder, int index, bool make = false) {
    char name[8];
    std::snprintf(name, sizeof(name), "%02x", static_cast<unsigned>(index));
    if (make) static_cast<void>(mkdirat(folder.descriptor_, name, 0700));
    descriptor_ = openat(folder.descriptor_, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat status;
    if (descriptor_ < 0 || (fstat(descriptor_, &status) == 0 && is_own(status))) return;
    close(descriptor_);
    descriptor_ = -1;
  }
  ~Part() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  int descriptor() const { return descriptor_; }  // -1: there is none
  int open(const std::string& name, int flags) const {
    return descriptor_ < 0 ? -1 : openat(descriptor_, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, 0600);
  }
  void remove(const std::string& name) const {
    if (descriptor_ >= 0) static_cast<void>(unlinkat(descriptor_, name.c_str(), 0));
  }
  template <typename See>
  void list(const See& see) const {
    const int own = descriptor_ < 0 ? -1 : openat(descriptor_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* const folder = own < 0 ? nullptr : fdopendir(own);
    if (!folder) {
      if (own >= 0) close(own);
      return;
    }
    while (const dirent* const entry = readdir(folder)) see(std::string(entry->d_name));
    closedir(folder);
  }

 private:
  // Whether the folder is this user's and no other user can put files there.
  static bool is_own(const struct stat& status) {
    return status.st_uid == geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
  }
  int descriptor_ = -1;
};

DiskFolder::DiskFolder(const std::string& path, int64_t most_bytes) : most_bytes_(most_bytes) {
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor_ < 0) {
    fail(ErrorCode::kInvalidRequest, "prefix_cache: ", path, " cannot be opened as a folder: ", std::strerror(errno));
  }
  struct stat status;
  const bool is_known = fstat(descriptor_, &status) == 0;
  if (is_known && status.st_uid == geteuid() && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0) return;
  close(descriptor_);
  if (is_known && status.st_uid == geteuid()) {
    fail(ErrorCode::kInvalidRequest, "prefix_cache: others may write to ", path, "; chmod go-w ", path);
  }
  fail(ErrorCode::kInvalidRequest, "prefix_cache: ", path, " does not belong to this user; name another folder");
}

DiskFolder::~DiskFolder() { close(descriptor_); }

BlockName DiskFolder::name_of(const KvOwner& owner, const BlockName& before, std::span<const int32_t> numbers) {
  uint64_t sum = before.whole;
  if (before.numbers == 0) {
    sum = checksum64(owner.model.data(), owner.model.size(), owner.salt);
    sum = checksum64(owner.adapter.data(), owner.adapter.size(), sum);
  }
  const auto own = numbers.subspan(static_cast<size_t>(before.numbers));
  return {sum, checksum64(own.data(), own.size_bytes(), sum), static_cast<int64_t>(numbers.size())};
}

int DiskFolder::open(const BlockName& name, int64_t& bytes) const {
  const Part part(*this, Part::of(name.before));
  const int file = part.open(name.text(), O_RDONLY | O_NONBLOCK);  // a pipe must not make it wait
  struct stat status;
  if (file >= 0 && fstat(file, &status) == 0 && is_own_file(status)) {
    bytes = status.st_size;
    return file;
  }
  if (file >= 0) close(file);
  return -1;
}

bool DiskFolder::has(const BlockName& name, int64_t bytes) const {
  int64_t found = 0;
  const int file = open(name, found);
  if (file < 0) return false;
  if (found == bytes) mark_used(file);
  close(file);
  return found == bytes;
}

void DiskFolder::mark_used(int descriptor) const {
  timespec times[2];
  // The system would take the time from a clock that stands still for some milliseconds. Another file may be used
  // within them.
  clock_gettime(CLOCK_REALTIME, &times[0]);
  times[1] = times[0];
  static_cast<void>(futimens(descriptor, times));
}

void DiskFolder::remove(const BlockName& name) const { Part(*this, Part::of(name.before)).remove(name.text()); }

bool DiskFolder::write(const BlockName& name, std::span<const uint8_t> bytes) {
  const auto size = static_cast<int64_t>(bytes.size());
  if (size > most_bytes_) return false;
  const Part part(*this, Part::of(name.before), true);
  // Another machine, or another namespace of processes, may use the folder too.
  std::random_device random;
  const std::string made = kTemporary + std::to_string(getpid()) + "-" + std::to_string(random()) + ".tmp";
  const int file = part.open(made, O_WRONLY | O_CREAT | O_EXCL);
  if (file < 0) return false;
  const bool is_written = write_fully(file, bytes);
  mark_used(file);
  const bool is_closed = close(file) == 0;
  if (!is_written || !is_closed ||
      renameat(part.descriptor(), made.c_str(), part.descriptor(), name.text().c_str()) != 0) {
    part.remove(made);
    return false;
  }
  written_bytes_.fetch_add(size, std::memory_order_relaxed);
  if (bytes_ >= 0) bytes_ += size;
  if (bytes_ < 0 || bytes_ > most_bytes_ || ++writes_ >= kCountAgain) make_room();
  return true;
}

std::vector<BlockName> DiskFolder::following(uint64_t before) const {
  std::vector<BlockName> names;
  Part(*this, Part::of(before)).list([&](const std::string& text) {
    BlockName name;
    if (BlockName::parse(text, name) && name.before == before) names.push_back(name);
  });
  return names;
}

// Counts the entries, and removes those that were not used for the longest time until a tenth of the room is free. When
// a block is used, the blocks that it follows count as used too.
void DiskFolder::make_room() {
  std::vector<Entry> entries;
  for (int index = 0; index < Part::kCount; ++index) {
    const Part part(*this, index);
    part.list([&](const std::string& text) {
      Entry entry;
      struct stat status;
      const bool is_temporary = text.rfind(kTemporary, 0) == 0;
      const bool is_block = BlockName::parse(text, entry.name) && Part::of(entry.name.before) == index;
      if (!is_temporary && !is_block) return;
      if (fstatat(part.descriptor(), text.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0 || !is_own_file(status)) return;
      if (is_temporary) {
        if (std::time(nullptr) - status.st_mtim.tv_sec > kAbandoned) part.remove(text);
        return;
      }
      entry.bytes = status.st_size;
      entry.used = status.st_mtim.tv_sec * int64_t{1000000000} + status.st_mtim.tv_nsec;
      entries.push_back(entry);
    });
  }
  bytes_ = writes_ = 0;
  std::unordered_map<uint64_t, size_t> places;  // key: the checksum of the text
  for (size_t i = 0; i < entries.size(); ++i) {
    bytes_ += entries[i].bytes;
    places[entries[i].name.whole] = i;
  }
  if (bytes_ <= most_bytes_) return;
  std::vector<size_t> order(entries.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return entries[a].used > entries[b].used; });
  for (const size_t place : order) {
    for (const Entry* entry = &entries[place];;) {
      const auto parent = places.find(entry->name.before);
      if (parent == places.end()) break;
      Entry& before = entries[parent->second];
      if (before.used >= entry->used || before.name.numbers >= entry->name.numbers) break;
      before.used = entry->used;
      entry = &before;
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.used != b.used ? a.used < b.used : a.name.numbers > b.name.numbers;
  });
  for (const Entry& entry : entries) {
    if (bytes_ <= most_bytes_ - most_bytes_ / 10) break;
    remove(entry.name);
    bytes_ -= entry.bytes;
  }
}

}  // namespace gemlet
