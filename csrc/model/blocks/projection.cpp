// The matrices that adapters may correct: y = W x, and for the rows that have an adapter y += scale * (B (A x) + bias),
// and DoRA's gain on it.
#include <string>

#include "model/forward.h"

namespace gemlet {

namespace {

// The tap name of the input of a matrix of attention or of the MLP, after one of the matrices that share it; "" for
// others.
std::string input_name(Target target) {
  switch (target) {
    case Target::kQProj:
      return "q_proj.input";
    case Target::kOProj:
      return "o_proj.input";
    case Target::kGateProj:
      return "gate_proj.input";
    case Target::kDownProj:
      return "down_proj.input";
    default:
      return "";
  }
}

}  // namespace

void ForwardPass::project(size_t index, std::span<const Projection> projections) {
  products_.clear();
  for (const Projection& p : projections) products_.push_back({p.x, rows_, p.weight, p.y});
  if (const std::string name = input_name(projections.front().target); !name.empty()) {
    tap_layer(index, name, projections.front().x, projections.front().weight->cols);
  }
  std::vector<Correction> corrections;
  for (const AdapterRun& run : runs_) {
    for (const Projection& p : projections) {
      const LowRank* const term = run.adapter->term(p.target, index);
      if (!term) continue;
      corrections.push_back({term, p.x + run.row * term->a.cols, p.y + run.row * term->b.rows, run.rows});
    }
  }
  multiply(corrections);
}

void ForwardPass::multiply(std::span<Correction> corrections) {
  const int64_t low_room = model_.scratch.floats(Region::kAdapterLow);
  const int64_t delta_room = model_.scratch.floats(Region::kAdapterDelta);
  size_t first = 0;
  do {  // once, except for experts, of which a row has several
    int64_t low = 0, delta = 0;
    size_t end = first;
    for (; end < corrections.size(); ++end) {
      const Correction& c = corrections[end];
      const int64_t more_low = c.rows * c.term->b.cols, more_delta = c.rows * c.term->b.rows;
      if (end > first && (low + more_low > low_room || delta + more_delta > delta_room)) break;
      low += more_low;
      delta += more_delta;
    }
    correct(corrections.subspan(first, end - first), low, delta);
    first = end;
  } while (first < corrections.size());
}

// One call multiplies W x and A x of all runs of rows. A second call multiplies B (A x) of all of them.
void ForwardPass::correct(std::span<Correction> corrections, int64_t low_floats, int64_t delta_floats) {
  float* low = corrections.empty() ? nullptr : model_.scratch.take(Region::kAdapterLow, low_floats);
  float* delta = corrections.empty() ? nullptr : model_.scratch.take(Region::kAdapterDelta, delta_floats);
  for (Correction& c : corrections) {
    c.low = low;
    c.delta = delta;
    push_low(*c.term, c.x, c.rows, low);
    low += c.rows * c.term->b.cols;
    delta += c.rows * c.term->b.rows;
  }
  backend_.matmul(products_);
  products_.clear();
  for (const Correction& c : corrections) {
    backend_.scale(c.term->scale, c.rows * c.term->b.cols, c.low);
    products_.push_back({c.low, c.rows, &c.term->b, c.delta});
  }
  if (!products_.empty()) backend_.matmul(products_);
  products_.clear();
  for (const Correction& c : corrections) {
    const int64_t dim = c.term->b.rows;
    backend_.add_branch(c.delta, nullptr, eps_, c.rows, dim, c.y);
    if (c.term->gain) backend_.mul_rows(c.y, c.term->gain, c.rows, dim, c.y);
  }
}

// low [rows, columns of B] = A x, and 1 for the column of a bias.
void ForwardPass::push_low(const LowRank& term, const float* x, int64_t rows, float* low) {
  if (term.b.cols > term.a.rows) {
    const std::vector<float> ones(static_cast<size_t>(rows * term.b.cols), 1.0f);
    backend_.upload(ones.data(), ones.size() * sizeof(float), low);
  }
  products_.push_back({x, rows, &term.a, low, term.b.cols});
}

}  // namespace gemlet
