// The parts of a model. Forward passes work with them.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "base/file_mapping.h"
#include "model/balance.h"
#include "model/config.h"
#include "model/kv_blocks.h"
#include "model/scratch.h"
#include "model/tensors.h"
#include "model/weights.h"

namespace gemlet {

struct ModelParts {
  ModelConfig config;
  ModelWeights weights;
  std::shared_ptr<const FileMapping> mapping;  // the file whose weights are used in place; null: none
  std::shared_ptr<Backend> backend;            // a drafter shares that of the model it drafts for
  std::unique_ptr<KvPool> kv;
  Format weight_format;                                   // the format of matrices without one of their own
  std::map<size_t, std::vector<float>> key_factors = {};  // only layers whose keys are balanced (model/balance.h)
  Balances balances = {};
  Tensors towers = {};
  Scratch scratch = {};
};

}  // namespace gemlet
