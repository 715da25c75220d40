// A table that stays in its file, such as the per-layer embeddings. Rows are read one by one when they are needed: a
// token needs only one of 262,144 rows. Rows are read with pread, so a file that shrinks is an error and not a crash.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/open_file.h"
#include "formats/source_types.h"

namespace gemlet {

class RowTable {
 public:
  struct Columns {
    int64_t first, count;
  };

  RowTable() = default;
  // A table of `rows` x `cols` values from byte `offset` of the open file `descriptor`, which stays the caller's;
  // `path` is for messages. `scales` is for types whose scales are in another tensor, and has equally many scales for
  // each row. Only the columns `kept` of each row are read, one run after the other. If `kept` is empty, all columns
  // are read. Throws kModelFile if the file cannot be used or is too short, kTensor if the table has no such columns or
  // if they are not whole blocks.
  RowTable(int descriptor, const std::string& path, int64_t offset, int64_t rows, int64_t cols, SourceType type,
           std::vector<Columns> kept = {}, std::vector<float> scales = {});
  // A table of random values, computed when they are read, for benchmarks.
  static RowTable random(int64_t rows, int64_t cols, uint64_t seed);

  bool empty() const { return rows_ == 0; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t row_bytes() const { return source_bytes(type_, cols_); }

  // Throws kModelFile if the file was changed since it was opened (OpenFile::check()).
  void check() const {
    if (file_) file_->check();
  }
  // Reads a row into out [cols]. Throws kModelFile if the file can no longer be read, kTensor if the row is not finite.
  void read(int64_t row, float* out) const;

 private:
  std::shared_ptr<const OpenFile> file_;  // null in a random table
  int64_t offset_ = 0, rows_ = 0, cols_ = 0;
  int64_t stride_ = 0;         // values from one row to the next in the file
  std::vector<Columns> kept_;  // the columns of a row that are read, cols_ values in all
  SourceType type_ = SourceType::kBf16;
  std::vector<float> scales_;
  uint64_t seed_ = 0;
};

// Fills out with uniformly distributed values in [-1, 1), which depend only on the seed.
void random_uniform(uint64_t seed, int64_t count, float* out);

}  // namespace gemlet
