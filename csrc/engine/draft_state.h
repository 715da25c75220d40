// The state that a draft model (engine/draft_model.h) keeps for one request.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/kv_table.h"

namespace gemlet {

struct DraftState {
  // Only a SmallerModel uses these:
  std::unique_ptr<KvTable> kv;   // the draft model's keys and values; null: none yet
  int64_t certain = 0;           // tokens of the request whose keys and values are in `kv`
  std::vector<int32_t> guessed;  // draft tokens whose keys and values follow them in `kv`
  int64_t kept_blocks = 0;       // full blocks that the draft model's prefix cache holds already
  // Only an Assistant uses these: the target model's hidden states [rows, hidden] from the last pass, and the row from
  // which the last token was chosen.
  std::vector<float> states;
  int64_t right = 0;
};

}  // namespace gemlet
