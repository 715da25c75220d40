#include "base/piece_encoder.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <queue>
#include <string>
#include <utility>

#include "base/error.h"

namespace gemlet {
namespace {

enum Type : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
constexpr int32_t kBpe = 2;  // TrainerSpec.ModelType
constexpr std::string_view kSpace = "\xE2\x96\x81";
constexpr size_t kStart = 4;  // the first bytes by which user-defined pieces are looked up
constexpr size_t kMostBytes = INT32_MAX / 4;
// A hostile vocabulary may make look-ups slow. Gemma's vocabularies stay far below these limits.
constexpr size_t kMostSteps = 256;   // slots between the one that a piece's hash gives and the one that holds the piece
constexpr size_t kMostLengths = 64;  // lengths of user-defined pieces with the same first bytes
constexpr size_t kAhead = 16;        // slots of the table are prefetched this many pieces ahead

// The fields of a message of protocol buffers, one after the other.
class Fields {
 public:
  explicit Fields(std::string_view message) : rest_(message) {}

  bool next() {
    if (rest_.empty() || !ok_) return false;
    const uint64_t key = varint();
    number_ = key >> 3, wire_ = key & 7, bytes_ = {}, value_ = 0;
    switch (wire_) {
      case 0:
        value_ = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        take(varint());
        break;
      case 5:
        take(4);
        break;
      default:
        ok_ = false;
    }
    return ok_;
  }

  bool ok() const { return ok_; }
  bool is_bytes(uint64_t number) const { return number_ == number && wire_ == 2; }
  bool is_number(uint64_t number) const { return number_ == number && wire_ == 0; }
  bool is_float(uint64_t number) const { return number_ == number && wire_ == 5; }
  std::string_view bytes() const { return bytes_; }
  uint64_t number() const { return value_; }
  float as_float() const {
    uint32_t bits = 0;
    for (size_t i = 4; i-- > 0;) bits = bits << 8 | static_cast<uint8_t>(bytes_[i]);
    return std::bit_cast<float>(bits);
  }

 private:
  void take(uint64_t size) {
    ok_ = ok_ && size <= rest_.size();
    if (!ok_) return;
    bytes_ = rest_.substr(0, static_cast<size_t>(size));
    rest_.remove_prefix(bytes_.size());
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(rest_[0]);
      rest_.remove_prefix(1);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    ok_ = false;
    return 0;
  }

  std::string_view rest_, bytes_;
  uint64_t number_ = 0, wire_ = 0, value_ = 0;
  bool ok_ = true;
};

uint32_t hash_of(std::string_view text) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;  // bits of the golden ratio
  uint64_t hash = text.size();
  while (!text.empty()) {
    uint64_t word = 0;
    const size_t size = std::min(text.size(), sizeof(word));
    std::memcpy(&word, text.data(), size);
    hash = (hash ^ word) * kOdd;
    hash ^= hash >> 32;
    text.remove_prefix(size);
  }
  return static_cast<uint32_t>(hash * kOdd >> 32);
}

// Bytes of the character that begins with `byte`, as SentencePiece counts them.
size_t character_bytes(char byte) {
  const auto first = static_cast<uint8_t>(byte);
  return first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

// The number of a byte piece, "<0x0A>", -1 for another text.
int byte_of(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  const size_t high = kDigits.find(text[3]), low = kDigits.find(text[4]);
  return high == kDigits.npos || low == kDigits.npos ? -1 : static_cast<int>(high * 16 + low);
}

struct Settings {
  int32_t model_type = 1;
  bool byte_fallback = false;
  bool as_it_is = false;  // text is taken as it is, but with U+2581 for spaces

  bool read_trainer(std::string_view message) {
    Fields fields(message);
    bool suffixes = false;
    while (fields.next()) {
      if (fields.is_number(3)) model_type = static_cast<int32_t>(fields.number());
      if (fields.is_number(24)) suffixes = fields.number() != 0;
      if (fields.is_number(35)) byte_fallback = fields.number() != 0;
    }
    return fields.ok() && !suffixes;
  }

  bool read_normalizer(std::string_view message) {
    Fields fields(message);
    bool map = false, prefix = true, fewer_spaces = true, escapes = true;
    while (fields.next()) {
      if (fields.is_bytes(2)) map = !fields.bytes().empty();
      if (fields.is_number(3)) prefix = fields.number() != 0;
      if (fields.is_number(4)) fewer_spaces = fields.number() != 0;
      if (fields.is_number(5)) escapes = fields.number() != 0;
    }
    as_it_is = escapes && !(map || prefix || fewer_spaces);
    return fields.ok();
  }
};

}  // namespace

std::unique_ptr<PieceEncoder> PieceEncoder::of(std::string_view model) {
  std::unique_ptr<PieceEncoder> encoder(new PieceEncoder());
  return encoder->read(model) ? std::move(encoder) : nullptr;
}

bool PieceEncoder::read(std::string_view model) {
  Settings settings;
  int trainers = 0, normalizers = 0;
  pieces_.reserve(model.size() / 24);
  Fields fields(model);
  while (fields.next()) {
    if (fields.is_bytes(1)) {
      Piece piece{{}, 0, kNormal};
      Fields of_piece(fields.bytes());
      while (of_piece.next()) {
        if (of_piece.is_bytes(1)) piece.text = of_piece.bytes();
        if (of_piece.is_float(2)) piece.score = of_piece.as_float();
        if (of_piece.is_number(3)) piece.type = static_cast<int32_t>(of_piece.number());
      }
      if (!of_piece.ok() || piece.text.empty() || !(piece.score == piece.score)) return false;
      pieces_.push_back(piece);
    } else if (fields.is_bytes(2)) {
      if (++trainers > 1 || !settings.read_trainer(fields.bytes())) return false;
    } else if (fields.is_bytes(3)) {
      if (++normalizers > 1 || !settings.read_normalizer(fields.bytes())) return false;
    } else if (fields.is_bytes(4)) {
      return false;  // samples with their ids, which SentencePiece compares with its own
    }
  }
  const bool is_known = settings.model_type == kBpe && settings.as_it_is && trainers == 1;
  return fields.ok() && is_known && pieces_.size() <= INT32_MAX / 4 && finish(settings.byte_fallback);
}

bool PieceEncoder::finish(bool byte_fallback) {
  table_.resize(std::bit_ceil(2 * pieces_.size()));
  std::vector<uint32_t> hashes;
  hashes.reserve(pieces_.size());
  for (const Piece& piece : pieces_) hashes.push_back(hash_of(piece.text));
  if (byte_fallback) bytes_.assign(256, -1);
  std::vector<std::string_view> reserved;  // pieces that no text becomes
  for (int32_t id = 0; id < static_cast<int32_t>(pieces_.size()); ++id) {
    const Piece& piece = pieces_[static_cast<size_t>(id)];
    const size_t soon = std::min(static_cast<size_t>(id) + kAhead, pieces_.size() - 1);
    __builtin_prefetch(&table_[hashes[soon] & (table_.size() - 1)], 1);
    if (piece.type == kNormal || piece.type == kUnused || piece.type == kUserDefined) {
      if (!add_to_table(id, hashes[static_cast<size_t>(id)])) return false;
      continue;
    }
    if (piece.type == kByte) {
      const int byte = byte_of(piece.text);
      if (byte < 0 || !byte_fallback) return false;
      bytes_[static_cast<size_t>(byte)] = id;
    } else if (piece.type == kUnknown && unknown_ < 0) {
      unknown_ = id;
    } else if (piece.type != kControl) {
      return false;
    }
    const bool is_character = character_bytes(piece.text[0]) >= piece.text.size();
    if (is_character) return false;
    reserved.push_back(piece.text);
  }
  std::sort(reserved.begin(), reserved.end());
  if (std::adjacent_find(reserved.begin(), reserved.end()) != reserved.end()) return false;
  for (const std::string_view text : reserved) {
    if (find(text) >= 0) return false;
  }
  for (auto& [start, sizes] : user_defined_) {
    std::sort(sizes.begin(), sizes.end(), std::greater<>());
    sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
    if (sizes.size() > kMostLengths) return false;
  }
  return unknown_ >= 0 && std::find(bytes_.begin(), bytes_.end(), -1) == bytes_.end();
}

bool PieceEncoder::add_to_table(int32_t id, uint32_t hash) {
  const Piece& piece = pieces_[static_cast<size_t>(id)];
  size_t steps = 0, place = hash & (table_.size() - 1);
  for (; table_[place].id >= 0; place = (place + 1) & (table_.size() - 1)) {
    if (table_[place].hash == hash && text_of(table_[place].id) == piece.text) return false;
    if (++steps > kMostSteps) return false;
  }
  table_[place] = {hash, id};
  most_steps_ = std::max(most_steps_, steps);
  if (piece.type != kUserDefined) return true;
  user_defined_[piece.text.substr(0, kStart)].push_back(piece.text.size());
  return piece.text.find('\0') == piece.text.npos;  // SentencePiece would end the piece there
}

int32_t PieceEncoder::find(std::string_view text) const {
  const uint32_t hash = hash_of(text);
  for (size_t steps = 0; steps <= most_steps_; ++steps) {
    const Slot& slot = table_[(hash + steps) & (table_.size() - 1)];
    if (slot.id < 0) break;
    if (slot.hash == hash && text_of(slot.id) == text) return slot.id;
  }
  return -1;
}

size_t PieceEncoder::user_defined_at(std::string_view text) const {
  for (size_t start = std::min(kStart, text.size()); start > 0; --start) {
    const auto found = user_defined_.find(text.substr(0, start));
    if (found == user_defined_.end()) continue;
    for (const size_t size : found->second) {
      if (size > text.size()) continue;
      const int32_t id = find(text.substr(0, size));
      if (id >= 0 && pieces_[static_cast<size_t>(id)].type == kUserDefined) return size;
    }
  }
  return 0;
}

struct PieceEncoder::Symbol {
  int32_t before, behind;  // the previous and the next piece; -1: there is none
  std::string_view text;   // empty once it is part of the one before it
  bool is_whole;           // a user-defined piece, which is not merged
};

// The state while one text is encoded.
class PieceEncoder::Merging {
 public:
  Merging(const PieceEncoder& encoder, std::string_view text) : encoder_(encoder) {
    while (!text.empty()) {
      const size_t whole = encoder.user_defined_at(text);
      const size_t size = whole > 0 ? whole : std::min(character_bytes(text[0]), text.size());
      const auto index = static_cast<int32_t>(symbols_.size());
      symbols_.push_back({index - 1, size < text.size() ? index + 1 : -1, text.substr(0, size), whole > 0});
      text.remove_prefix(size);
    }
    for (size_t right = 1; right < symbols_.size(); ++right) {
      consider(static_cast<int32_t>(right) - 1, static_cast<int32_t>(right));
    }
  }

  void merge() {
    while (!candidates_.empty()) {
      const Candidate best = candidates_.top();
      candidates_.pop();
      Symbol &left = at(best.left), &right = at(best.right);
      if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != best.size) continue;
      left.text = {left.text.data(), best.size};
      left.behind = right.behind;
      if (right.behind >= 0) at(right.behind).before = best.left;
      right.text = {};
      consider(left.before, best.left);
      consider(best.left, left.behind);
    }
  }

  std::vector<int32_t> ids() const {
    std::vector<int32_t> result;
    std::vector<std::string_view> todo;
    bool after_unknown = false;
    for (int32_t index = symbols_.empty() ? -1 : 0; index >= 0; index = symbols_[static_cast<size_t>(index)].behind) {
      todo.push_back(symbols_[static_cast<size_t>(index)].text);
      while (!todo.empty()) {
        const std::string_view text = todo.back();
        todo.pop_back();
        const int32_t found = encoder_.find(text);
        const auto parts = unused_.find(found);
        if (parts != unused_.end()) {
          todo.push_back(parts->second.second);
          todo.push_back(parts->second.first);
          continue;
        }
        const bool is_unknown = found < 0 || encoder_.pieces_[static_cast<size_t>(found)].type == kUnused;
        if (is_unknown && !encoder_.bytes_.empty()) {
          for (const char byte : text) result.push_back(encoder_.bytes_[static_cast<uint8_t>(byte)]);
        } else if (!is_unknown || !after_unknown) {  // several unknown pieces in a row become one
          result.push_back(is_unknown ? encoder_.unknown_ : found);
        }
        after_unknown = is_unknown;
      }
    }
    return result;
  }

 private:
  struct Candidate {
    float score;
    int32_t left, right;
    size_t size;
    bool operator<(const Candidate& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };

  Symbol& at(int32_t index) { return symbols_[static_cast<size_t>(index)]; }

  void consider(int32_t left, int32_t right) {
    if (left < 0 || right < 0 || at(left).is_whole || at(right).is_whole) return;
    const std::string_view a = at(left).text, b = at(right).text;
    const std::string_view text(a.data(), a.size() + b.size());
    const int32_t id = encoder_.find(text);
    if (id < 0) return;
    const Piece& piece = encoder_.pieces_[static_cast<size_t>(id)];
    candidates_.push({piece.score, left, right, text.size()});
    if (piece.type == kUnused) unused_[id] = {a, b};
  }

  const PieceEncoder& encoder_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> candidates_;
  // For each piece that text must not become: the two parts that were merged into it last. It is split into them again.
  std::unordered_map<int32_t, std::pair<std::string_view, std::string_view>> unused_;
};

std::vector<int32_t> PieceEncoder::encode(std::string_view text) const {
  if (text.size() > kMostBytes) {
    fail(ErrorCode::kInvalidRequest, "the text has ", text.size(), " bytes, expected at most ", kMostBytes,
         "; cut it into parts");
  }
  std::string escaped;
  escaped.reserve(text.size() + text.size() / 2);
  for (const char byte : text) {
    if (byte == ' ') {
      escaped += kSpace;
    } else {
      escaped += byte;
    }
  }
  Merging merging(*this, escaped);
  merging.merge();
  return merging.ids();
}

}  // namespace gemlet
