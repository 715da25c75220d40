// Attention on the CPU: which rows and which part of the cache make one task.
//
// Prefill: a task is up to 32 query rows of one key/value head (several tokens x the heads of a group), over all keys
// they see. Decode: few rows and a long cache, so a task is one piece of its keys (kPieceTokens), and the results of
// the pieces are added in order. The kernel adds pieces in the same way, so both give the same bits, and how the work
// is split changes nothing.
#include <algorithm>
#include <array>
#include <cmath>

#include "backend/cpu/cpu_backend.h"

namespace gemlet {
namespace {

using kernels::kMaxAttentionRows;

constexpr int64_t kMaxSplitRows = 8;                     // segments with more rows have enough tasks without splitting
constexpr int64_t kMostPartialBytes = int64_t{4} << 20;  // bytes for the results of pieces in one call

int64_t quotient(int64_t count, int64_t size) { return (count + size - 1) / size; }  // rounded up

// Floats of the result of a piece: out [rows, dim], largest score and sum of each row.
int64_t partial_floats(int64_t rows, int64_t head_dim) { return rows * (head_dim + 2); }

int64_t heads_of_task(int64_t group) { return std::min(group, kMaxAttentionRows); }
int64_t tokens_of_task(int64_t group) { return std::max<int64_t>(1, kMaxAttentionRows / heads_of_task(group)); }

struct Task {
  const AttentionSegment* segment;
  size_t blocks;  // index of the first pointer to this head's blocks in kv_blocks_
  int64_t kv_head;
  int64_t token, tokens;  // rows of the segment
  int64_t head, heads;    // query heads within the group
  int64_t kv_begin, kv_end;
  int64_t ahead;    // the number of tokens after its own that a row sees, up to kv_end
  int64_t partial;  // index of this task's result among those of pieces; -1: it writes the output itself
  int64_t rows() const { return tokens * heads; }
};

// Tasks [task, task + count), whose results must be added: pieces of the same rows.
struct Merge {
  size_t task;
  int64_t count;
};

struct KvKernels {
  kernels::kv_store_f32_fn* store;
  kernels::attention_f32_fn* attention;
};

KvKernels kernels_of(const kernels::KernelTable& table, KvFormat format) {
  switch (format) {
#define GEMLET_KV_KERNELS(id, name, bits) \
  case KvFormat::k##id:                   \
    return {table.kv_store_##name, table.attention_##name};
    GEMLET_KV_FORMATS(GEMLET_KV_KERNELS)
#undef GEMLET_KV_KERNELS
  }
  return {};
}

// Rotates by Hadamard's matrix, divided by the square root of its size, which is the largest power of two that divides
// head_dim. An int4 cache rounds keys and values after this rotation, because it makes the numbers of a head similar in
// size. Queries are rotated too, so scores do not change. The rotation is its own inverse, so it also rotates the
// outputs back.
void rotate_for_int4(int64_t head_dim, float* head) {
  const int64_t size = head_dim & -head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (float* part = head; part < head + head_dim; part += size) {
    for (int64_t half = 1; half < size; half *= 2) {
      for (int64_t first = 0; first < size; first += 2 * half) {
        for (int64_t i = first; i < first + half; ++i) {
          const float a = part[i], b = part[i + half];
          part[i] = a + b;
          part[i + half] = a - b;
        }
      }
    }
    for (int64_t i = 0; i < size; ++i) part[i] *= scale;
  }
}

}  // namespace

int64_t CpuBackend::attention_bytes(int64_t num_heads, int64_t, int64_t head_dim, int64_t tokens) const {
  const int64_t pieces = quotient(tokens, kPieceTokens) + 1;  // the first may begin anywhere
  const int64_t floats = partial_floats(kMaxSplitRows * num_heads, head_dim) * pieces;
  return std::min(kMostPartialBytes, floats * static_cast<int64_t>(sizeof(float)));
}

void CpuBackend::rope_angles(std::span<const float> frequencies, std::span<const int64_t> positions, float* cosines,
                             float* sines) {
  constexpr size_t kTokens = 16;  // tokens of one task; 512 would take milliseconds on one thread
  const size_t count = frequencies.size();
  pool_.run(static_cast<int64_t>((positions.size() + kTokens - 1) / kTokens), [&](int64_t task, int) {
    const size_t first = static_cast<size_t>(task) * kTokens;
    for (size_t row = first; row < std::min(positions.size(), first + kTokens); ++row) {
      for (size_t i = 0; i < count; ++i) {
        const float angle = static_cast<float>(positions[row]) * frequencies[i];
        cosines[row * count + i] = std::cos(angle);
        sines[row * count + i] = std::sin(angle);
      }
    }
  });
}

void CpuBackend::rope_and_store(const AttentionShape& shape, std::span<const StoreSegment> segments, float* q, float* k,
                                float* v, const float* q_norm, const float* k_norm, bool v_norm, float eps,
                                const float* cosines, const float* sines) {
  const int64_t dim = shape.head_dim;
  const auto store = kernels_of(kernels_, shape.kv_format).store;
  const bool rotated = shape.kv_format == KvFormat::kInt4;
  const auto rope_and_store_row = [&](const StoreSegment& segment, int64_t i) {
    const int64_t row = segment.row + i;
    const int64_t position = segment.position + i;
    const auto rotate = [&](float scale, float* head) {
      if (cosines) {
        const int64_t part = dim / shape.rope_parts;
        for (int64_t at = 0; at < dim; at += part) {
          const int64_t angle = row * (dim / 2) + at / 2;
          kernels_.rope(cosines + angle, sines + angle, scale, part, head + at);
        }
      } else if (scale != 1.0f) {
        for (int64_t d = 0; d < dim; ++d) head[d] *= scale;
      }
    };
    for (int64_t h = 0; q && h < shape.num_heads; ++h) {
      float* head = q + (row * shape.num_heads + h) * dim;
      if (q_norm) kernels_.rms_norm(head, q_norm, eps, dim, head);
      rotate(shape.query_scale, head);
      if (rotated) rotate_for_int4(dim, head);
    }
    if (!k) return;
    const int64_t block = position / kKvBlockTokens;
    for (int64_t h = 0; h < shape.num_kv_heads; ++h) {
      float* key = k + (row * shape.num_kv_heads + h) * dim;
      if (k_norm) kernels_.rms_norm(key, k_norm, eps, dim, key);
      rotate(1.0f, key);
      float* value = v + (row * shape.num_kv_heads + h) * dim;
      if (v_norm) kernels_.rms_norm(value, nullptr, eps, dim, value);
      if (rotated) {
        rotate_for_int4(dim, key);
        rotate_for_int4(dim, value);
      }
      store({key, value, dim, position % kKvBlockTokens, segment.kv.head(h, block)});
    }
  };
  const int64_t together = kernels::kv_slots_together(bits_of(shape.kv_format));
  for (const StoreSegment& segment : segments) {
    const int64_t before = segment.position % together;  // tokens of the first group that the cache has already
    const int64_t groups = (before + segment.rows + together - 1) / together;
    for_each_row(groups, together * (shape.num_heads + 2 * shape.num_kv_heads) * dim, [&](int64_t group) {
      const int64_t end = std::min((group + 1) * together - before, segment.rows);
      for (int64_t i = std::max<int64_t>(0, group * together - before); i < end; ++i) rope_and_store_row(segment, i);
    });
  }
}

void CpuBackend::attention(const AttentionShape& shape, std::span<const AttentionSegment> segments, const float* q,
                           float* out) {
  const int64_t dim = shape.head_dim;
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  const int64_t heads_per_task = heads_of_task(group);
  const auto kernel = kernels_of(kernels_, shape.kv_format).attention;
  const bool rotated = shape.kv_format == KvFormat::kInt4;

  std::vector<Task> tasks;
  std::vector<Merge> merges;
  int64_t partials = 0;
  kv_blocks_.clear();
  for (const AttentionSegment& segment : segments) {
    const size_t first_task = tasks.size(), first_blocks = kv_blocks_.size(), count = segment.kv.blocks.size();
    for (int64_t kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
      for (const KvBlock& block : segment.kv.blocks) kv_blocks_.push_back(block.head(segment.kv.first_head + kv_head));
    }
    const int64_t tokens_per_task = tokens_of_task(group);
    const int64_t last = segment.position + segment.rows;
    auto span = segment.spans.begin();
    for (int64_t token = 0, tokens = 0; token < segment.rows; token += tokens) {
      const int64_t position = segment.position + token;
      while (span != segment.spans.end() && span->end <= position) ++span;
      const bool in_span = span != segment.spans.end() && span->begin <= position;
      // All rows of a task are in the same span, or none is in a span.
      const int64_t border = span == segment.spans.end() ? last : in_span ? span->end : span->begin;
      tokens = std::min(tokens_per_task, border - position);
      const int64_t begin = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) : 0;
      int64_t end = position + tokens, ahead = 0;
      if (in_span) {
        end = ahead = border;
      } else if (shape.bidirectional) {
        ahead = shape.window > 0 ? shape.window - 1 : last;
        end = std::min(last, end + ahead);
      }
      const int64_t pieces = quotient(end, kPieceTokens) - begin / kPieceTokens;
      const int64_t floats = partial_floats(tokens * shape.num_heads, dim) * pieces;
      const bool split = segment.rows <= kMaxSplitRows && pieces > 1 &&
                         (partials + floats) * static_cast<int64_t>(sizeof(float)) <= kMostPartialBytes;
      for (int64_t kv_head = 0; kv_head < shape.num_kv_heads; ++kv_head) {
        for (int64_t head = 0; head < group; head += heads_per_task) {
          const int64_t heads = std::min(heads_per_task, group - head);
          const size_t blocks = first_blocks + static_cast<size_t>(kv_head) * count;
          Task task = {&segment, blocks, kv_head, token, tokens, head, heads, begin, end, ahead, -1};
          if (!split) {
            tasks.push_back(task);
            continue;
          }
          merges.push_back({tasks.size(), 0});
          for (int64_t at = begin; at < end; at = task.kv_end) {
            task.kv_begin = at;
            task.kv_end = std::min(end, (at / kPieceTokens + 1) * kPieceTokens);
            task.partial = partials;
            partials += partial_floats(task.rows(), dim);
            tasks.push_back(task);
            ++merges.back().count;
          }
        }
      }
    }
    if (segment.rows > kMaxSplitRows) {  // one head after the other, so that its keys and values stay in the caches
      std::stable_sort(tasks.begin() + static_cast<std::ptrdiff_t>(first_task), tasks.end(),
                       [](const Task& a, const Task& b) { return a.kv_head < b.kv_head; });
    }
  }

  int64_t tokens_read = 0;
  for (const Task& task : tasks) tokens_read += task.kv_end - task.kv_begin;
  const int64_t head_bytes = kernels::kv_head_bytes(dim, bits_of(shape.kv_format));
  bytes_read_.fetch_add(tokens_read * head_bytes / kKvBlockTokens, std::memory_order_relaxed);

  const int64_t scratch_floats = kernels::attention_scratch(dim);
  float* const scratches = scratch(attention_scratch_, scratch_floats * pool_.threads());
  float* const parts = scratch(partials_, partials);
  const auto out_row = [&](const Task& task, int64_t r) {
    const int64_t row = task.segment->row + task.token + r / task.heads;
    return (row * shape.num_heads + task.kv_head * group + task.head + r % task.heads) * dim;
  };

  pool_.run(static_cast<int64_t>(tasks.size()), [&](int64_t index, int thread) {
    const Task& task = tasks[static_cast<size_t>(index)];
    const int64_t rows = task.rows();
    float* const part = task.partial >= 0 ? parts + task.partial : nullptr;
    std::array<const float*, kMaxAttentionRows> queries;
    std::array<float*, kMaxAttentionRows> outputs;
    std::array<int32_t, kMaxAttentionRows> positions;
    for (int64_t r = 0; r < rows; ++r) {
      const size_t i = static_cast<size_t>(r);
      queries[i] = q + out_row(task, r);
      outputs[i] = part ? part + r * dim : out + out_row(task, r);
      positions[i] = static_cast<int32_t>(task.segment->position + task.token + r / task.heads);
    }
    kernels::AttentionArgs args = {};
    args.q = queries.data();
    args.positions = positions.data();
    args.rows = rows;
    args.head_dim = dim;
    args.blocks = kv_blocks_.data() + task.blocks;
    args.first_block = task.segment->kv.first_block;
    args.kv_begin = task.kv_begin;
    args.kv_end = task.kv_end;
    args.window = shape.window;
    args.ahead = task.ahead;
    args.softcap = shape.softcap;
    args.out = outputs.data();
    args.max = part ? part + rows * dim : nullptr;
    args.sum = part ? args.max + rows : nullptr;
    args.scratch = scratches + thread * scratch_floats;
    kernel(args);
    for (int64_t r = 0; rotated && !part && r < rows; ++r) rotate_for_int4(dim, args.out[r]);
  });

  pool_.run(static_cast<int64_t>(merges.size()), [&](int64_t index, int) {
    const Merge& merge = merges[static_cast<size_t>(index)];
    const Task& first = tasks[merge.task];
    const int64_t rows = first.rows();
    for (int64_t r = 0; r < rows; ++r) {
      float* const to = out + out_row(first, r);
      std::fill_n(to, dim, 0.0f);
      float largest = 0, sum = 0;
      for (int64_t i = 0; i < merge.count; ++i) {
        const float* const part = parts + tasks[merge.task + static_cast<size_t>(i)].partial;
        kernels::add_piece(part + r * dim, part[rows * dim + r], part[rows * (dim + 1) + r], dim, to, largest, sum);
      }
      const float scale = sum == 0.0f ? 1.0f : 1.0f / sum;
      for (int64_t d = 0; d < dim; ++d) to[d] *= scale;
      if (rotated) rotate_for_int4(dim, to);
    }
  });
}

}  // namespace gemlet
