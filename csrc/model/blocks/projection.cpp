// The matrices of a layer that adapters may correct: y = W x, and scale * B (A x) for the rows that have an adapter.
#include "model/forward.h"

namespace gemlet {

void ForwardPass::project(size_t index, std::span<const Projection> projections) {
  products_.clear();
  for (const Projection& p : projections) products_.push_back({p.x, rows_, p.weight, p.y});
  if (runs_.empty()) return backend_.matmul(products_);

  // A x of all runs of rows goes along with W x, B (A x) of all of them follows in one call.
  struct Correction {
    const LowRank* term;
    float* low;    // [rows, rank]
    float* delta;  // [rows, dim]
    float* y;      // [rows, dim]
    int64_t rows;
  };
  std::vector<Correction> corrections;
  float *low = adapter_low_, *delta = adapter_delta_;
  for (const AdapterRun& run : runs_) {
    const LayerAdapter& layer = run.adapter->layer(index);
    for (const Projection& p : projections) {
      const LowRank& term = layer.*p.term;
      if (term.empty()) continue;
      products_.push_back({p.x + run.row * term.a.cols, run.rows, &term.a, low});
      corrections.push_back({&term, low, delta, p.y + run.row * term.b.rows, run.rows});
      low += run.rows * term.a.rows;
      delta += run.rows * term.b.rows;
    }
  }
  backend_.matmul(products_);
  products_.clear();
  for (const Correction& c : corrections) {
    backend_.scale(c.term->scale, c.rows * c.term->a.rows, c.low);
    products_.push_back({c.low, c.rows, &c.term->b, c.delta});
  }
  backend_.matmul(products_);
  for (const Correction& c : corrections) {
    backend_.add_branch(c.delta, nullptr, eps_, c.rows, c.term->b.rows, c.y);
  }
}

// Rows of one adapter stand next to each other.
void ForwardPass::find_adapter_runs() {
  runs_.clear();
  for (const Part& part : parts_) {
    if (!part.adapter || part.rows == 0) continue;
    if (!runs_.empty() && runs_.back().adapter == part.adapter) {
      runs_.back().rows += part.rows;
    } else {
      runs_.push_back({part.adapter, part.row, part.rows});
    }
  }
}

}  // namespace gemlet
