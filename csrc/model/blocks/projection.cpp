// The matrices that adapters may correct: y = W x, and for the rows that have an adapter y += scale * B (A x), and
// DoRA's gain on it.
#include "model/forward.h"

namespace gemlet {

void ForwardPass::project(size_t index, std::span<const Projection> projections) {
  products_.clear();
  for (const Projection& p : projections) products_.push_back({p.x, rows_, p.weight, p.y});
  if (runs_.empty()) return backend_.matmul(products_);

  struct Correction {
    const LowRank* term;
    const float* x;  // [rows, cols]
    float* y;        // [rows, dim]
    int64_t rows;
    float* low = nullptr;    // [rows, rank] A x
    float* delta = nullptr;  // [rows, dim] B (A x)
  };
  std::vector<Correction> corrections;
  int64_t low_floats = 0, delta_floats = 0;
  for (const AdapterRun& run : runs_) {
    for (const Projection& p : projections) {
      const LowRank* const term = run.adapter->term(p.target, index);
      if (!term) continue;
      corrections.push_back({term, p.x + run.row * term->a.cols, p.y + run.row * term->b.rows, run.rows});
      low_floats += run.rows * term->a.rows;
      delta_floats += run.rows * term->b.rows;
    }
  }
  // One call multiplies W x and A x of all runs of rows. A second call multiplies B (A x) of all of them.
  float* low = model_.scratch.take(Region::kAdapterLow, low_floats);
  float* delta = model_.scratch.take(Region::kAdapterDelta, delta_floats);
  for (Correction& c : corrections) {
    c.low = low;
    c.delta = delta;
    products_.push_back({c.x, c.rows, &c.term->a, c.low});
    low += c.rows * c.term->a.rows;
    delta += c.rows * c.term->b.rows;
  }
  backend_.matmul(products_);
  products_.clear();
  for (const Correction& c : corrections) {
    backend_.scale(c.term->scale, c.rows * c.term->a.rows, c.low);
    products_.push_back({c.low, c.rows, &c.term->b, c.delta});
  }
  backend_.matmul(products_);
  for (const Correction& c : corrections) {
    const int64_t dim = c.term->b.rows;
    backend_.add_branch(c.delta, nullptr, eps_, c.rows, dim, c.y);
    if (c.term->gain) backend_.mul_rows(c.y, c.term->gain, c.rows, dim, c.y);
  }
}

}  // namespace gemlet
