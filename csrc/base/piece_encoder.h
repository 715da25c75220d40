// Splits text into the pieces of a SentencePiece model, with the same result as SentencePiece. SentencePiece takes a
// tenth of a second to build its index of 262,144 pieces. This index takes a tenth of that time.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace gemlet {

class PieceEncoder {
 public:
  // Makes the encoder of a model file. `model` must outlive the encoder. It supports models like Gemma's: byte-pair
  // encoding, where spaces become U+2581 and the text does not change otherwise. Returns null for other models, for a
  // model that SentencePiece refuses, and for pieces that were made up to slow down the search.
  static std::unique_ptr<PieceEncoder> of(std::string_view model);

  size_t size() const { return pieces_.size(); }

  // The ids of `text`, which must be UTF-8.
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
  int32_t find(std::string_view text) const;  // the id of the piece, -1 if text cannot become such a piece
  // length in bytes of the longest user-defined piece at the start of `text`
  size_t user_defined_at(std::string_view text) const;

  std::vector<Piece> pieces_;
  std::vector<Slot> table_;  // a hash table of the pieces that text can become
  size_t most_steps_ = 0;    // the most slots that a search in table_ goes through
  // Key: the first four bytes of user-defined pieces, or all bytes of a shorter piece. Value: the lengths of these
  // pieces, the longest first.
  std::unordered_map<std::string_view, std::vector<size_t>> user_defined_;
  std::vector<int32_t> bytes_;  // ids of the byte pieces; empty if the model has none
  int32_t unknown_ = -1;
};

}  // namespace gemlet
