// A table of rows that stays in its file: rows are read one by one as they are needed (per-layer embeddings, of which a
// token touches one row in 262,144). Reads go through pread, so a file that shrinks is an error and never a crash.
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
  // `rows` rows of `cols` values from byte `offset` of the open file `descriptor`, which stays the caller's (`path` is
  // for messages); of every row only `kept`, one run after the other, all if empty. Throws kModelFile if the file
  // cannot be used or is too short, kTensor if it has no such columns or they are not whole blocks.
  RowTable(int descriptor, const std::string& path, int64_t offset, int64_t rows, int64_t cols, SourceType type,
           std::vector<Columns> kept = {});
  // A table of random values that takes no memory, for benchmarks.
  static RowTable random(int64_t rows, int64_t cols, uint64_t seed);

  bool empty() const { return rows_ == 0; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t row_bytes() const { return source_bytes(type_, cols_); }

  // Throws kModelFile if the file was changed: OpenFile::check().
  void check() const {
    if (file_) file_->check();
  }
  // out [cols] float32. Throws kModelFile if the file has become unreadable, kTensor if the row is not finite.
  void read(int64_t row, float* out) const;

 private:
  std::shared_ptr<const OpenFile> file_;  // null: random
  int64_t offset_ = 0, rows_ = 0, cols_ = 0;
  int64_t stride_ = 0;         // values from row to row in the file
  std::vector<Columns> kept_;  // runs of them that are read, cols_ in all
  SourceType type_ = SourceType::kBf16;
  uint64_t seed_ = 0;
};

// Fills out with uniform values in [-1, 1); the same for the same seed.
void random_uniform(uint64_t seed, int64_t count, float* out);

}  // namespace gemlet
