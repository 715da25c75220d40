#include "engine/kv_record.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/checksum.h"
#include "base/open_file.h"

namespace gemlet {
namespace {

constexpr char kMagic[8] = {'g', 'e', 'm', 'l', 'e', 't', 'K', 'V'};
constexpr uint32_t kVersion = 1;
constexpr int64_t kMostNumbers = int64_t{1} << 24;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t kinds;
  Digest model, adapter;
  uint64_t salt;
  int64_t numbers;
  uint64_t present;   // a bit for each kind
  uint64_t checksum;  // it covers everything before the keys and values, with 0 in this field
};
static_assert(sizeof(Header) == 112);

int64_t head_bytes(size_t kinds, int64_t numbers) {
  const int64_t bytes = static_cast<int64_t>(sizeof(Header) + kinds * sizeof(uint64_t)) + numbers * 4;
  return (bytes + 7) / 8 * 8;
}

Header header_of(const KvPool& pool, const KvOwner& owner, int64_t numbers) {
  Header header = {};
  std::copy(std::begin(kMagic), std::end(kMagic), header.magic);
  header.version = kVersion;
  header.kinds = static_cast<uint32_t>(pool.layout().kinds.size());
  header.model = owner.model;
  header.adapter = owner.adapter;
  header.salt = owner.salt;
  header.numbers = numbers;
  return header;
}

}  // namespace

std::vector<uint8_t> encode_record(KvPool& pool, const KvOwner& owner, std::span<const int32_t> numbers,
                                   const std::vector<KvBlockRef>& blocks) {
  const std::vector<KvLayout::Kind>& kinds = pool.layout().kinds;
  const int64_t head = head_bytes(kinds.size(), static_cast<int64_t>(numbers.size()));
  int64_t bytes = head;
  Header header = header_of(pool, owner, static_cast<int64_t>(numbers.size()));
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    if (!blocks[kind]) continue;
    header.present |= uint64_t{1} << kind;
    bytes += kinds[kind].block_bytes();
  }
  std::vector<uint8_t> record(static_cast<size_t>(bytes));
  std::vector<uint64_t> sums(kinds.size());
  uint8_t* at = record.data() + head;
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    if (!blocks[kind]) continue;
    pool.download(kind, blocks[kind].read(), at);
    sums[kind] = checksum64(at, static_cast<size_t>(kinds[kind].block_bytes()), kind);
    at += kinds[kind].block_bytes();
  }
  std::memcpy(record.data() + sizeof(header), sums.data(), sums.size() * sizeof(uint64_t));
  std::memcpy(record.data() + sizeof(header) + sums.size() * sizeof(uint64_t), numbers.data(), numbers.size_bytes());
  std::memcpy(record.data(), &header, sizeof(header));
  header.checksum = checksum64(record.data(), static_cast<size_t>(head), 0);
  std::memcpy(record.data(), &header, sizeof(header));
  return record;
}

std::optional<KvRecord> KvRecord::open(int descriptor, int64_t at, int64_t file_bytes, const KvPool& pool,
                                       const KvOwner& owner) {
  const std::vector<KvLayout::Kind>& kinds = pool.layout().kinds;
  Header header;
  if (at < 0 || file_bytes - at < static_cast<int64_t>(sizeof(header))) return std::nullopt;
  if (!read_fully(descriptor, at, sizeof(header), &header)) return std::nullopt;
  if (header.numbers < 1 || header.numbers > kMostNumbers) return std::nullopt;
  Header expected = header_of(pool, owner, header.numbers);
  expected.present = header.present;
  expected.checksum = header.checksum;
  if (std::memcmp(&header, &expected, sizeof(header)) != 0 || header.present >> kinds.size() != 0) return std::nullopt;
  const int64_t head = head_bytes(kinds.size(), header.numbers);
  KvRecord record;
  record.present_ = header.present;
  record.payload_at_ = at + head;
  record.bytes_ = head;
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    if (record.has(kind)) record.bytes_ += kinds[kind].block_bytes();
  }
  if (file_bytes - at < record.bytes_) return std::nullopt;
  std::vector<uint8_t> bytes(static_cast<size_t>(head));
  if (!read_fully(descriptor, at, head, bytes.data())) return std::nullopt;
  header.checksum = 0;
  std::memcpy(bytes.data(), &header, sizeof(header));
  if (checksum64(bytes.data(), bytes.size(), 0) != expected.checksum) return std::nullopt;
  record.sums_.resize(kinds.size());
  std::memcpy(record.sums_.data(), bytes.data() + sizeof(header), kinds.size() * sizeof(uint64_t));
  record.numbers_.resize(static_cast<size_t>(header.numbers));
  std::memcpy(record.numbers_.data(), bytes.data() + sizeof(header) + kinds.size() * sizeof(uint64_t),
              record.numbers_.size() * sizeof(int32_t));
  return record;
}

std::span<const int32_t> KvRecord::before() const {
  const int64_t tokens = std::max<int64_t>(1, TextKey::tokens_in(numbers_));
  return numbers().first(TextKey::numbers_of(numbers_, (tokens - 1) / kKvBlockTokens * kKvBlockTokens));
}

bool KvRecord::read(int descriptor, const std::vector<bool>& wanted, KvPool& pool,
                    std::vector<KvBlockRef>& blocks) const {
  const std::vector<KvLayout::Kind>& kinds = pool.layout().kinds;
  blocks.clear();
  int64_t at = payload_at_;
  AlignedBuffer bytes;
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    blocks.emplace_back();
    if (!has(kind)) continue;
    const int64_t size = kinds[kind].block_bytes();
    if (wanted[kind]) {
      if (bytes.size() < static_cast<size_t>(size)) bytes = AlignedBuffer(static_cast<size_t>(size));
      if (!read_fully(descriptor, at, size, bytes.as<uint8_t>())) return false;
      if (checksum64(bytes.as<uint8_t>(), static_cast<size_t>(size), kind) != sums_[kind]) return false;
      std::vector<KvBlockRef> taken;
      pool.take(kind, 1, taken);
      pool.upload(kind, bytes.as<uint8_t>(), *taken[0].write());
      blocks.back() = std::move(taken[0]);
    }
    at += size;
  }
  return true;
}

bool write_fully(int descriptor, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = write(descriptor, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return true;
}

}  // namespace gemlet
