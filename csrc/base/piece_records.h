// The pieces in a file of SentencePiece. There are 262,144 of them in Gemma's, too many to look at in Python.
#pragma once

#include <cstddef>
#include <string_view>

namespace gemlet {

// The end of the run of pieces that begins at `at`, or `at` itself if no piece begins there. A piece counts if it has
// the layout that every writer uses: tag and length (below 128), tag and length of the text, text, tag and score,
// perhaps tag and type.
size_t after_pieces(std::string_view data, size_t at);

// Whether the little-endian numbers of 32 bits in `data` never fall and the last one is `last`.
bool rises_to(std::string_view data, size_t last);

}  // namespace gemlet
