#include "model/batch.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "model/kv_table.h"

namespace gemlet {
namespace {

void check_ids(std::span<const int32_t> ids, const ModelConfig& config) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config.vocab_size) {
      fail(ErrorCode::kInvalidRequest, "token id ", ids[i], " at position ", i,
           " is out of range: the vocabulary has ids 0 to ", config.vocab_size - 1);
    }
  }
}

void check_soft_rows(const TokenRun& tokens, const ModelConfig& config) {
  int64_t free = 0;  // the first token that may have a soft row
  for (const SoftRows& soft : tokens.soft_rows) {
    if (soft.rows < 1 || soft.first < free || soft.rows > tokens.rows() - soft.first) {
      fail(ErrorCode::kInvalidRequest, soft.rows, " soft rows begin at token ", soft.first,
           ", expected 1 or more among the tokens ", free, " to ", tokens.rows() - 1, " that have none yet");
    }
    for (int64_t i = 0; i < soft.rows * config.hidden_size; ++i) {
      if (!std::isfinite(soft.values[i])) {
        fail(ErrorCode::kInvalidRequest, "the soft row of token ", soft.first + i / config.hidden_size, " has ",
             soft.values[i], " at ", i % config.hidden_size, ", expected finite numbers");
      }
    }
    free = soft.first + soft.rows;
  }
}

void check_spans(const TokenRun& tokens, const ModelConfig& config) {
  int64_t free = 0;  // the first token that may be in a span
  for (const TokenSpan& span : tokens.spans) {
    if (span.begin < free || span.end <= span.begin || span.end > tokens.rows()) {
      fail(ErrorCode::kInvalidRequest, "a span has the tokens from ", span.begin, " up to ", span.end,
           ", expected 1 or more among the tokens ", free, " to ", tokens.rows() - 1, " that are in none yet");
    }
    if (config.has_spans() && span.end - span.begin > config.most_rows()) {
      fail(ErrorCode::kInvalidRequest, "a span has ", span.end - span.begin, " tokens, but the model was loaded for ",
           config.most_rows(), " at most (longest_span)");
    }
    free = span.end;
  }
}

void check_segment(const Segment& segment, const ModelConfig& config) {
  if (segment.rows() == 0) fail(ErrorCode::kInvalidRequest, "a sequence in the batch has no new tokens");
  segment.tokens.check(config);
  if (config.bidirectional && segment.kv->length() > 0) {
    fail(ErrorCode::kInvalidRequest, "a text to be embedded must come as a whole, in one segment");
  }
  const int64_t after = segment.kv->length() + segment.rows();
  if (after > config.max_context) {
    fail(ErrorCode::kContextLength, after, " tokens do not fit the context of ", config.max_context,
         "; shorten the prompt, or load with a larger max_context if the model allows it");
  }
}

}  // namespace

void TokenRun::check(const ModelConfig& config) const {
  check_ids(ids, config);
  check_soft_rows(*this, config);
  check_spans(*this, config);
}

int64_t Batch::rows() const {
  int64_t rows = 0;
  for (const Segment& segment : segments) rows += segment.rows();
  return rows;
}

void Batch::check(const ModelConfig& config) const {
  if (config.bidirectional != (embeddings != nullptr)) {
    fail(ErrorCode::kInvalidRequest, config.bidirectional
                                         ? "the model makes embeddings of texts and cannot continue one"
                                         : "the model continues texts and makes no embeddings");
  }
  if ((config.target_size > 0) != (target != nullptr)) {
    fail(ErrorCode::kInvalidRequest, target ? "the model is not an assistant and cannot draft for another model"
                                            : "an assistant cannot continue a text by itself; give it as `drafter`");
  }
  std::set<const KvTable*> sequences;
  for (const Segment& segment : segments) {
    check_segment(segment, config);
    if (target && (segment.rows() != 1 || !segment.state || segment.logits_rows() != 1)) {
      fail(ErrorCode::kInternal, "a segment of an assistant has one token, a state and a row of logits");
    }
    if (!sequences.insert(segment.kv).second) {
      fail(ErrorCode::kInvalidRequest, "a sequence is in the batch twice; give all its new tokens in one segment");
    }
    if (!config.bidirectional && segment.logits_rows() > 0 && !logits) {
      fail(ErrorCode::kInternal, "a segment wants logits, but the batch has no memory for them");
    }
  }
}

}  // namespace gemlet
