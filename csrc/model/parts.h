// What a model is made of. Forward passes work with these.
#pragma once

#include <memory>

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
  std::unique_ptr<Backend> backend;
  std::unique_ptr<KvPool> kv;
  Format weight_format;  // of matrices without a format of their own
  Balances balances = {};
  Tensors towers = {};
  Scratch scratch = {};
};

}  // namespace gemlet
