// Fills the slots of a ModelBuilder: with rows that all threads pack, with packed values of a mapped file, or with
// random values.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>

#include "backend/staging.h"
#include "base/error.h"
#include "formats/quantize.h"
#include "formats/repack.h"
#include "model/builder.h"

namespace gemlet {

// Memory for rows of a panel, lent to the threads that pack. It is kept from one panel to the next, since new memory
// would be cleared page by page every time, and goes with the builder.
class PanelScratch {
  struct Buffer {
    std::unique_ptr<uint8_t[]> memory;
    int64_t size = 0;
    std::unique_ptr<Buffer> next;
  };

 public:
  class Loan {
   public:
    explicit Loan(PanelScratch& from) : from_(from) {
      const std::lock_guard<ForkMutex> lock(from_.mutex_);
      buffer_ = std::move(from_.free_);
      if (buffer_) from_.free_ = std::move(buffer_->next);
    }
    ~Loan() {
      if (!buffer_) return;
      const std::lock_guard<ForkMutex> lock(from_.mutex_);
      buffer_->next = std::move(from_.free_);
      from_.free_ = std::move(buffer_);
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    uint8_t* get(int64_t size) {  // null: no memory
      if (!buffer_) buffer_.reset(new (std::nothrow) Buffer);
      if (buffer_ && size > buffer_->size) {
        buffer_->memory.reset();
        buffer_->memory.reset(new (std::nothrow) uint8_t[static_cast<size_t>(size)]);
        buffer_->size = buffer_->memory ? size : 0;
      }
      return buffer_ ? buffer_->memory.get() : nullptr;
    }

   private:
    PanelScratch& from_;
    std::unique_ptr<Buffer> buffer_;
  };

 private:
  ForkMutex mutex_;
  std::unique_ptr<Buffer> free_;
};

namespace {

enum class Outcome : uint8_t { kPacked, kUnreadable, kNoMemory, kNotFinite };

void check_outcome(Outcome outcome, const std::string& name, std::string_view format) {
  switch (outcome) {
    case Outcome::kPacked:
      return;
    case Outcome::kUnreadable:
      fail(ErrorCode::kModelFile, "tensor '", name, "': the file cannot be read, was cut short, or memory is out");
    case Outcome::kNoMemory:
      fail(ErrorCode::kMemory, "out of memory while packing tensor '", name, "'");
    case Outcome::kNotFinite:
      if (format == format_name(Format::kBf12)) {
        fail(ErrorCode::kTensor, "tensor '", name,
             "' holds NaN or infinity, as of a damaged file, or too many weights ",
             "outside of 15 consecutive exponents in a row, which bf12 has no room for and bf16 has");
      }
      fail(ErrorCode::kTensor, "tensor '", name, "' holds NaN, infinity or a value too large for format ", format,
           "; the file is damaged or the training diverged");
  }
}

// Times the balance of the columns, unless it is ones.
void multiply(float* rows, int64_t count, const std::vector<float>& scale) {
  const auto cols = static_cast<int64_t>(scale.size());
  for (int64_t r = 0; r < count && cols > 0; ++r) {
    float* const row = rows + r * cols;
    for (int64_t c = 0; c < cols; ++c) row[c] *= scale[static_cast<size_t>(c)];
  }
}

}  // namespace

void ModelBuilder::check_can_fill() const {
  if (mode_ == BuildMode::kPlan) fail(ErrorCode::kInvalidRequest, "this builder was made to plan only, with threads=0");
}

// pack_rows(first, count, panel) packs `count` rows from row `first` of the matrix into a panel of `out`; called from
// several threads, and must not throw.
template <typename PackRows>
void ModelBuilder::fill_panels(const std::string& name, const Matrix& matrix, int64_t first_row, int64_t row_count,
                               const PackRows& pack_rows, uint8_t* out) {
  std::atomic<Outcome> outcome{Outcome::kPacked};
  const auto pack = [&](int64_t index) {
    const int64_t first = first_row + index * kPanelRows;
    const int64_t count = std::min(kPanelRows, matrix.rows - first);
    const Outcome one = pack_rows(first, count, out + index * panel_bytes(matrix.format, matrix.cols));
    if (one != Outcome::kPacked) outcome = one;
  };
  // New memory first, a huge page at a time: threads that meet in one while packing would each clear it.
  constexpr int64_t kHugePage = int64_t{2} << 20;
  backend_->parallel(
      gemlet::packed_bytes(matrix.format, row_count, matrix.cols) / kHugePage,
      [](const void* context, int64_t index) {
        static_cast<volatile uint8_t*>(const_cast<void*>(context))[index * kHugePage] = 0;
      },
      out);
  backend_->parallel(
      panel_count(row_count),
      [](const void* context, int64_t index) { (*static_cast<const decltype(pack)*>(context))(index); }, &pack);
  check_outcome(outcome, name, format_name(matrix.format));
}

// read_rows(first, count, out) gives `count` rows from row `first` of the tensor as float32, or says that it cannot;
// called from several threads. `packed` takes their packed form.
template <typename ReadRows>
void ModelBuilder::fill(const std::string& name, const Slot& slot, int64_t first_row, int64_t row_count,
                        const ReadRows& read_rows, uint8_t* packed, bool balanced) {
  if (!slot.matrix) {
    float* const out = reinterpret_cast<float*>(packed);
    std::memset(packed, 0, static_cast<size_t>(slot.packed_bytes(1)));
    Outcome outcome = read_rows(0, 1, out) ? Outcome::kPacked : Outcome::kUnreadable;
    for (int64_t i = 0; i < slot.values(); ++i) {
      if (!std::isfinite(out[i]) && outcome == Outcome::kPacked) outcome = Outcome::kNotFinite;
      out[i] += slot.offset;
    }
    if (slot.balance && !slot.balance->scale.empty()) {
      for (int64_t i = 0; i < slot.values(); ++i) out[i] /= slot.balance->scale[static_cast<size_t>(i)];
    }
    return check_outcome(outcome, name, "f32");
  }
  const Matrix& matrix = *slot.matrix;
  static const Balance kNone;
  const Balance& balance = slot.balance ? *slot.balance : kNone;
  const float* const importance = balance.importance.empty() ? nullptr : balance.importance.data();
  if (!rows_scratch_) rows_scratch_ = std::make_shared<PanelScratch>();
  const auto pack_rows = [&](int64_t first, int64_t count, uint8_t* panel) {
    PanelScratch::Loan loan(*rows_scratch_);
    auto* const rows =
        reinterpret_cast<float*>(loan.get(kPanelRows * matrix.cols * static_cast<int64_t>(sizeof(float))));
    if (!rows) return Outcome::kNoMemory;
    if (!read_rows(first, count, rows)) return Outcome::kUnreadable;
    if (!balanced) multiply(rows, count, balance.scale);
    return pack_panel(matrix.format, rows, count, matrix.cols, panel, importance) ? Outcome::kPacked
                                                                                  : Outcome::kNotFinite;
  };
  fill_panels(name, matrix, first_row, row_count, pack_rows, packed);
}

ModelBuilder::Slot& ModelBuilder::find(const std::string& name) {
  check_can_fill();
  const auto found = slots_.find(name);
  if (finished_ || found == slots_.end()) fail(ErrorCode::kTensor, "tensor '", name, "' is not part of this model");
  if (found->second.filled()) fail(ErrorCode::kTensor, "tensor '", name, "' was given twice");
  return found->second;
}

void ModelBuilder::add(const std::string& name, const SourceRows& source, int64_t first_row) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  Slot& slot = find(name);
  if (slot.is_balance) return take_balance(name, slot, source);
  if (!slot.storage) fail(ErrorCode::kInvalidRequest, "tensor '", name, "': this builder has no memory of its own");
  if (first_row != slot.rows_filled) {
    fail(ErrorCode::kTensor, "tensor '", name, "': got rows from ", first_row, ", expected the next ones, from ",
         slot.rows_filled);
  }
  const int64_t left = slot.rows() - first_row;
  const int64_t rows = slot.matrix && !source.shape.empty() ? std::clamp<int64_t>(source.shape[0], 0, left) : left;
  Staging staging(*backend_, slot.storage + (slot.matrix ? slot.packed_bytes(first_row) : 0), slot.packed_bytes(rows));
  pack_rows(name, slot, source, first_row, staging.host());
  staging.finish();
  slot.rows_filled += rows;
}

int64_t ModelBuilder::packed_bytes(const std::string& name, int64_t rows) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  const auto found = slots_.find(name);
  if (found == slots_.end()) return 0;
  return found->second.packed_bytes(std::clamp<int64_t>(rows, 0, found->second.rows()));
}

void ModelBuilder::pack(const std::string& name, const SourceRows& source, int64_t first_row, uint8_t* out) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  Slot& slot = find(name);
  if (first_row < 0 || first_row >= slot.rows() || first_row % kPanelRows != 0) {
    fail(ErrorCode::kTensor, "tensor '", name, "': got rows from ", first_row, ", expected a multiple of ", kPanelRows,
         " below ", slot.rows());
  }
  if (slot.is_balance) {
    take_balance(name, slot, source);
    std::memset(out, 0, static_cast<size_t>(slot.packed_bytes(1)));
    std::vector<float> ones(static_cast<size_t>(slot.values()), 1.0f);
    const std::vector<float>& scale = slot.balance->scale.empty() ? ones : slot.balance->scale;
    std::memcpy(out, scale.data(), scale.size() * sizeof(float));
    return;
  }
  pack_rows(name, slot, source, first_row, out);
}

void ModelBuilder::take_balance(const std::string& name, Slot& slot, const SourceRows& source) {
  if (slot.balance->settled) {
    fail(ErrorCode::kTensor, "tensor '", name, "' was given twice, or after a weight that it balances");
  }
  std::vector<float> scale(static_cast<size_t>(slot.packed_bytes(1)) / sizeof(float));
  pack_rows(name, slot, source, 0, reinterpret_cast<uint8_t*>(scale.data()));
  set_balance(name, slot, scale.data());
}

void ModelBuilder::set_balance(const std::string& name, Slot& slot, const float* scale) {
  const auto count = static_cast<size_t>(slot.values());
  bool ones = true;
  for (size_t i = 0; i < count; ++i) {
    if (!(scale[i] >= kLeastBalance && scale[i] <= 1 / kLeastBalance)) {
      fail(ErrorCode::kTensor, "tensor '", name, "' holds ", scale[i], "; expected numbers from ", kLeastBalance,
           " to ", 1 / kLeastBalance);
    }
    ones = ones && scale[i] == 1.0f;
  }
  slot.balance->settled = true;
  if (ones) return;
  slot.balance->scale.assign(scale, scale + count);
  slot.balance->importance.assign(static_cast<size_t>(padded_cols(Format::kQ4, slot.values())), 1.0f);
  for (size_t i = 0; i < count; ++i) slot.balance->importance[i] = scale[i] * scale[i];
}

void ModelBuilder::map_file(int descriptor, const std::string& path) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  if (mapping_) fail(ErrorCode::kInvalidRequest, path, ": the builder has mapped ", mapping_->path(), " already");
  mapping_ = std::make_shared<FileMapping>(descriptor, path);
}

void ModelBuilder::use_packed(const std::string& name, int64_t offset, int64_t bytes) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  Slot& slot = find(name);
  if (!mapping_ || slot.storage) fail(ErrorCode::kInvalidRequest, "tensor '", name, "': no file was mapped for it");
  if (bytes != slot.packed_bytes(slot.rows())) {
    fail(ErrorCode::kTensor, "tensor '", name, "' has ", bytes, " bytes, expected ", slot.packed_bytes(slot.rows()),
         ": ", shape_text(slot.shape), " as packed ", slot.matrix ? format_name(slot.matrix->format) : "f32");
  }
  if (offset < 0 || offset % 64 != 0 || bytes > mapping_->size() || offset > mapping_->size() - bytes) {
    fail(ErrorCode::kTensor, "tensor '", name, "' begins at byte ", offset,
         ", expected a multiple of 64 and all of it inside the file of ", mapping_->size(), " bytes");
  }
  const uint8_t* const packed = mapping_->data() + offset;
  const bool on_disk = weights_.embedding_on_disk && (name == "embed_tokens" || name == "lm_head");
  if (slot.is_balance) {
    set_balance(name, slot, reinterpret_cast<const float*>(packed));
  } else if (backend_->host_memory() || on_disk) {
    set_storage(slot, packed);
  } else {
    slot.storage = allocate(bytes);
    backend_->upload(packed, static_cast<size_t>(bytes), slot.storage);
    set_storage(slot, slot.storage);
  }
  slot.rows_filled = slot.rows();
}

// Checks rows against the slot and packs them.
void ModelBuilder::pack_rows(const std::string& name, Slot& slot, const SourceRows& source, int64_t first_row,
                             uint8_t* out) {
  if (slot.balance && !slot.is_balance) slot.balance->settled = true;
  const bool matrix = slot.matrix != nullptr;
  const std::vector<int64_t>& shape = source.shape;
  // The rest of the tensor, or its next full panels.
  const int64_t rows = matrix && !shape.empty() ? shape[0] : 1;
  const int64_t left = slot.rows() - first_row;
  const bool same_columns =
      shape.size() == slot.shape.size() && (shape.empty() || std::equal(shape.begin() + (matrix ? 1 : 0), shape.end(),
                                                                        slot.shape.begin() + (matrix ? 1 : 0)));
  const bool fits = same_columns && (rows == left || (rows > 0 && rows < left && rows % kPanelRows == 0));
  if (!fits) {
    std::vector<int64_t> expected = slot.shape;
    if (matrix) expected[0] = left;
    fail(ErrorCode::kTensor, "tensor '", name, "' has shape ", shape_text(shape), ", expected ", shape_text(expected));
  }
  const int64_t cols = matrix ? slot.matrix->cols : slot.values();
  if (cols % source_block_values(source.type) != 0) {
    fail(ErrorCode::kTensor, "tensor '", name, "': rows of ", cols, " are not whole blocks of ",
         source_type_name(source.type));
  }
  const auto scale_count = static_cast<int64_t>(source.scales.size());
  if (has_own_scales(source.type) != (scale_count > 0) || scale_count % std::max<int64_t>(rows, 1) != 0 ||
      (scale_count > 0 && (!matrix || cols % (scale_count / rows) != 0))) {
    fail(ErrorCode::kTensor, "tensor '", name, "': ", scale_count, " scales for ", rows, " rows of ", cols, " in ",
         source_type_name(source.type));
  }
  const int64_t per_row = scale_count / std::max<int64_t>(rows, 1);
  const SourceScales all_scales = {source.scales.data(), scale_count > 0 ? rows : 0, per_row};
  if (!source.data) {
    const int64_t bytes = source_bytes(source.type, rows * cols);
    if (source.offset < 0 || source.offset > INT64_MAX - bytes) {
      fail(ErrorCode::kModelFile, "tensor '", name, "': ", bytes, " bytes from byte ", source.offset,
           " on lie in no file");
    }
  }
  if (!raw_scratch_) raw_scratch_ = std::make_shared<PanelScratch>();
  // Null: they cannot be read.
  const auto raw_rows = [&](int64_t first, int64_t count, PanelScratch::Loan& loan) -> const uint8_t* {
    const int64_t begin = source_bytes(source.type, (first - first_row) * cols);
    if (source.data) return static_cast<const uint8_t*>(source.data) + begin;
    const int64_t bytes = source_bytes(source.type, count * cols);
    uint8_t* const raw = loan.get(bytes);
    return raw && read_fully(source.descriptor, source.offset + begin, bytes, raw) ? raw : nullptr;
  };
  const bool balanced = slot.balance && !slot.balance->scale.empty() && !source.balanced;
  if (matrix && !balanced && can_repack(slot.matrix->format, source.type, all_scales)) {
    const auto pack = [&](int64_t first, int64_t count, uint8_t* panel) {
      PanelScratch::Loan loan(*raw_scratch_);
      const uint8_t* const raw = raw_rows(first, count, loan);
      if (!raw) return Outcome::kUnreadable;
      const SourceScales scales = {source.scales.data() + (first - first_row) * per_row, count, per_row};
      const bool finite = repack_panel(slot.matrix->format, source.type, raw, count, cols, panel, scales);
      return finite ? Outcome::kPacked : Outcome::kNotFinite;
    };
    return fill_panels(name, *slot.matrix, first_row, rows, pack, out);
  }
  const auto read_rows = [&](int64_t first, int64_t count, float* values) {
    PanelScratch::Loan loan(*raw_scratch_);
    const uint8_t* const raw = raw_rows(first, count, loan);
    if (raw && per_row > 0) {
      const float* const scales = source.scales.data() + (first - first_row) * per_row;
      widen_scaled(raw, source.type, count, cols, scales, per_row, values);
    } else if (raw) {
      widen(raw, source.type, 0, count * cols, values);
    }
    return raw != nullptr;
  };
  fill(name, slot, first_row, rows, read_rows, out, source.balanced);
}

void ModelBuilder::add_random(uint64_t seed, const std::function<void(int64_t)>& done) {
  const std::lock_guard<ForkMutex> lock(mutex_);
  check_can_fill();
  uint64_t tensor = 0;
  for (auto& [name, slot] : slots_) {
    ++tensor;
    if (slot.rows_filled > 0) continue;
    if (slot.is_balance) {
      slot.balance->settled = true;
      if (done) done(slot.packed_bytes(slot.rows()));
      continue;
    }
    if (!slot.storage) fail(ErrorCode::kInvalidRequest, "tensor '", name, "': this builder has no memory of its own");
    const int64_t cols = slot.matrix ? slot.matrix->cols : slot.values();
    // Uniform with the standard deviation 1/sqrt(cols) that keeps activations' size; vectors near their neutral value.
    const float scale = slot.matrix ? std::sqrt(3.0f / static_cast<float>(cols)) : 0.1f;
    const float neutral = slot.neutral;
    Staging staging(*backend_, slot.storage, slot.packed_bytes(slot.rows()));
    const uint64_t start = seed * 0x9e3779b97f4a7c15u + (tensor << 40);
    const auto random_rows = [&](int64_t first, int64_t count, float* out) {
      for (int64_t r = 0; r < count; ++r) {
        float* const row = out + r * cols;
        random_uniform(start + static_cast<uint64_t>(first + r), cols, row);
        for (int64_t c = 0; c < cols; ++c) row[c] = neutral + scale * row[c];
      }
      return true;
    };
    constexpr int64_t kPieceValues = int64_t{1} << 22;  // between two pieces, done() can end it
    const int64_t piece = std::max(kPanelRows, kPieceValues / cols / kPanelRows * kPanelRows);
    for (int64_t first = 0; first < slot.rows(); first += piece) {
      const int64_t rows = std::min(piece, slot.rows() - first);
      fill(name, slot, first, rows, random_rows, staging.host() + (first > 0 ? slot.packed_bytes(first) : 0));
      if (done) done(slot.packed_bytes(rows));
    }
    staging.finish();
    slot.rows_filled = slot.rows();
  }
  if (needs_per_layer_table() && weights_.per_layer_table.empty()) {
    accept_per_layer_table(RowTable::random(config_.per_layer_vocab_size,
                                            config_.per_layer_input_size * static_cast<int64_t>(config_.layers.size()),
                                            seed));
  }
}

}  // namespace gemlet
