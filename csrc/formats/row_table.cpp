#include "formats/row_table.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "formats/source_rows.h"

namespace gemlet {
namespace {

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr int64_t kMaxColumns = int64_t{1} << 40;  // with this limit, sizes computed from it fit into 64 bits

}  // namespace

RowTable::RowTable(int descriptor, const std::string& path, int64_t offset, int64_t rows, int64_t cols, SourceType type,
                   std::vector<Columns> kept, std::vector<float> scales)
    : offset_(offset), rows_(rows), stride_(cols), kept_(std::move(kept)), type_(type), scales_(std::move(scales)) {
  if (has_own_scales(type) != !scales_.empty() || (!kept_.empty() && !scales_.empty())) {
    fail(ErrorCode::kTensor, path, ": a table of ", source_type_name(type), " has ", scales_.size(), " scales and ",
         kept_.size(), " runs of columns, expected ",
         has_own_scales(type) ? "scales and no runs of columns" : "no scales");
  }
  if (kept_.empty()) kept_.push_back({0, cols});
  const int64_t block = source_block_values(type);
  if (cols < 1 || cols > kMaxColumns || cols % block != 0) {
    fail(ErrorCode::kTensor, path, ": a table of ", source_type_name(type), " has ", cols,
         " columns, expected a multiple of ", block, " up to ", kMaxColumns);
  }
  for (const Columns& run : kept_) {
    if (run.first < 0 || run.count < 1 || run.count > cols || run.first > cols - run.count) {
      fail(ErrorCode::kTensor, path, ": ", run.count, " columns from column ", run.first,
           " on are read, but the table has ", cols, " columns");
    }
    if (run.first % block != 0 || run.count % block != 0) {
      fail(ErrorCode::kTensor, path, ": columns ", run.first, " to ", run.first + run.count - 1,
           " are read, expected whole blocks of ", block, " columns of ", source_type_name(type));
    }
    cols_ += run.count;
  }
  const auto count = static_cast<int64_t>(scales_.size());
  if (rows < 1 || count % rows != 0 || (count > 0 && cols % (count / rows) != 0)) {
    fail(ErrorCode::kTensor, path, ": a table of ", rows, " x ", cols, " has ", count,
         " scales, expected equally many for each row, each for the same number of columns");
  }
  file_ = std::make_shared<OpenFile>(descriptor, path);
  if (offset < 0 || rows < 1 || offset > file_->size() || rows > (file_->size() - offset) / source_bytes(type, cols)) {
    fail(ErrorCode::kModelFile, path, ": the file has ", file_->size(), " bytes, which are too few for a table of ",
         rows, " x ", cols, " at byte ", offset, "; if the file was cut short, copy it again");
  }
}

RowTable RowTable::random(int64_t rows, int64_t cols, uint64_t seed) {
  RowTable table;
  table.rows_ = rows;
  table.cols_ = cols;
  table.seed_ = seed;
  return table;
}

void RowTable::read(int64_t row, float* out) const {
  if (row < 0 || row >= rows_)
    fail(ErrorCode::kInvalidRequest, "row ", row, " is read, but the table has rows 0 to ", rows_ - 1);
  if (!file_) return random_uniform(seed_ + static_cast<uint64_t>(row), cols_, out);
  std::vector<uint8_t> bytes(static_cast<size_t>(row_bytes()));
  uint8_t* at = bytes.data();
  for (const Columns& run : kept_) {
    const int64_t from = offset_ + source_bytes(type_, row * stride_ + run.first);
    const int64_t count = source_bytes(type_, run.count);
    file_->read(from, count, at);
    at += count;
  }
  if (scales_.empty()) {
    widen(bytes.data(), type_, 0, cols_, out);
  } else {
    const auto per_row = static_cast<int64_t>(scales_.size()) / rows_;
    widen_scaled(bytes.data(), type_, 1, cols_, scales_.data() + row * per_row, per_row, out);
  }
  for (int64_t i = 0; i < cols_; ++i) {  // loading checks all other weights, but does not read these
    if (!std::isfinite(out[i])) {
      fail(ErrorCode::kTensor, file_->path(), ": row ", row, " of the table at byte ", offset_,
           " holds NaN or infinity; the file is damaged or the training diverged");
    }
  }
}

void random_uniform(uint64_t seed, int64_t count, float* out) {
  uint64_t state = mix(seed);
  for (int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    out[i] = static_cast<float>(state >> 40) * 0x1p-23f - 1.0f;
  }
}

}  // namespace gemlet
