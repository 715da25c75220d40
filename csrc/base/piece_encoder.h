// Text to pieces by the merges of a SentencePiece model, as SentencePiece itself does it. SentencePiece takes a tenth
// of a second to build its index of 262,144 pieces. This index takes a tenth of that.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace gemlet {

class PieceEncoder {
 public:
  // Makes the encoder of a model file, which has to outlive it. It supports models like Gemma's: byte-pair encoding of
  // text in which nothing changes except that spaces become U+2581. Returns null for other models, for a model that
  // SentencePiece refuses, and for pieces that were chosen to make looking for them slow.
  static std::unique_ptr<PieceEncoder> of(std::string_view model);

  size_t size() const { return pieces_.size(); }

  // The ids of `text`, which is UTF-8.
  std::vector<int32_t> encode(std::string_view text) const;

 private:
  struct Piece {
    std::string_view text;
    float score = 0;
    int32_t type = 0;
  };
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;  // -1: free
  };
  struct Symbol;
  class Merging;

  PieceEncoder() = default;
  bool read(std::string_view model);
  bool finish(bool byte_fallback);
  bool add_to_table(int32_t id, uint32_t hash);
  std::string_view text_of(int32_t id) const { return pieces_[static_cast<size_t>(id)].text; }
  int32_t find(std::string_view text) const;            // the id of a piece that text may become, -1: there is none
  size_t user_defined_at(std::string_view text) const;  // bytes of the longest one that begins `text`

  std::vector<Piece> pieces_;
  std::vector<Slot> table_;  // the pieces that text may become, by the hashes of their texts
  size_t most_steps_ = 0;    // slots between the one that a hash gives and the one that holds the piece
  // Key: the first four bytes of user-defined pieces, or all bytes of a shorter piece. Value: the lengths of these
  // pieces, the longest first.
  std::unordered_map<std::string_view, std::vector<size_t>> user_defined_;
  std::vector<int32_t> bytes_;  // ids of the byte pieces; empty without them
  int32_t unknown_ = -1;
};

}  // namespace gemlet
