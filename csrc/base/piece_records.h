// Finds the pieces in a SentencePiece file. Gemma's files have 262,144 pieces, too many for a loop in Python.
#pragma once

#include <cstddef>
#include <string_view>

namespace gemlet {

// Returns the end of the run of pieces that begins at `at`, or `at` if there is no piece. A piece counts if it has the
// usual layout: tag and length (below 128), tag and length of the text, the text, tag and score, and optionally tag and
// type.
size_t after_pieces(std::string_view data, size_t at);

// Whether the little-endian 32-bit numbers in `data` never decrease and the last one is `last`.
bool rises_to(std::string_view data, size_t last);

}  // namespace gemlet
