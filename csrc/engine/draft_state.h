// The state that a drafting model (engine/draft_model.h) keeps for a text.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/kv_table.h"

namespace gemlet {

struct DraftState {
  // A smaller model needs these:
  std::unique_ptr<KvTable> kv;   // null: nothing yet
  int64_t certain = 0;           // tokens of the text whose keys and values are in it
  std::vector<int32_t> guessed;  // guessed tokens after those
  int64_t kept_blocks = 0;       // blocks that its prefix cache has
  // An assistant needs the model's states [rows, hidden] of the last pass, and the index of the one that chose the last
  // token.
  std::vector<float> states;
  int64_t right = 0;
};

}  // namespace gemlet
