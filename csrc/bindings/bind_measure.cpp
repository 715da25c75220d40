// Measures what this machine can do at most, and what a single kernel achieves.
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/interruptible.h"
#include "formats/quantize.h"
#include "kernels/registry.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

constexpr int kPasses = 5;

// Seconds of the fastest of kPasses runs of fn().
template <typename Fn>
double fastest(const Fn& fn) {
  double best = INFINITY;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
  }
  return best;
}

void check_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    fail(ErrorCode::kInvalidRequest, "threads is ", threads, ", expected 1 to ", kMaxThreads);
  }
}

Tier tier_in_use() { return choose_tier(detect_cpu(), std::getenv("GEMLET_CPU")).tier; }

// GB/s that `threads` threads read together from a buffer that is larger than the caches; the best of five passes.
double measure_read_bandwidth(int threads, int64_t megabytes) {
  check_threads(threads);
  if (megabytes < 1 || megabytes > 65536) {
    fail(ErrorCode::kInvalidRequest, "megabytes is ", megabytes, ", expected 1 to 65536");
  }
  double seconds = 0;
  std::atomic<bool> cancelled{false};
  run_interruptibly(
      [&] {
        const int64_t piece = int64_t{1} << 20;
        AlignedBuffer buffer(static_cast<size_t>(megabytes * piece));
        ThreadPool pool(threads);
        const kernels::KernelTable kernels = kernels::kernels_for(tier_in_use());
        float* const data = buffer.as<float>();
        const int64_t floats = piece / 4;
        pool.run(megabytes, [&](int64_t task, int) {
          if (cancelled) return;
          for (int64_t i = 0; i < floats; i += 1024) data[task * floats + i] = 1.0f;
        });
        std::vector<float> sums(static_cast<size_t>(megabytes));
        seconds = fastest([&] {
          pool.run(megabytes, [&](int64_t task, int) {
            if (!cancelled) sums[static_cast<size_t>(task)] = kernels.row_max(data + task * floats, floats);
          });
        });
      },
      [&] { cancelled = true; });
  return static_cast<double>(megabytes << 20) / seconds / 1e9;
}

// 1e9 multiply-adds per second that `threads` threads do together on registers, with numbers of one kind.
double measure_peak(const std::string& kind, int threads, const std::optional<std::string>& tier) {
  check_threads(threads);
  const kernels::KernelTable kernels = tier ? kernel_table(*tier) : kernels::kernels_for(tier_in_use());
  const auto peak = kind == "f32"    ? kernels.peak_f32
                    : kind == "bf16" ? kernels.peak_bf16
                    : kind == "i8"   ? kernels.peak_i8
                                     : nullptr;
  if (peak == nullptr) fail(ErrorCode::kInvalidRequest, "kind is '", kind, "', expected f32, bf16 or i8");
  const GilRelease release;
  ThreadPool pool(threads);
  // Tasks of about half a millisecond, the same number for every thread, so that a pass takes much longer than its
  // start.
  int64_t count = 1 << 16;
  for (double seconds = 0; seconds < 5e-4; count *= 2) {
    const auto start = std::chrono::steady_clock::now();
    peak(count);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const int64_t tasks = 32 * threads;
  std::vector<int64_t> done(static_cast<size_t>(tasks));
  const double seconds =
      fastest([&] { pool.run(tasks, [&](int64_t task, int) { done[static_cast<size_t>(task)] = peak(count); }); });
  return static_cast<double>(done[0] * tasks) / seconds / 1e9;
}

// One matmul kernel on one thread: rows of x times a matrix of made-up weights.
class MatmulRun {
 public:
  MatmulRun(const std::string& tier, const std::string& operation, int64_t rows, int64_t outputs, int64_t cols)
      : table_(kernel_table(tier)), operation_(matmul_operation(operation)), rows_(rows) {
    if (rows < 1 || outputs < 1 || cols < 1)
      fail(ErrorCode::kInvalidRequest, "rows, outputs and cols must be positive");
    weight_ = {operation_.weights, outputs, cols, nullptr};
    storage_ = AlignedBuffer(static_cast<size_t>(weight_.bytes()));
    weight_.data = storage_.data();
    std::vector<float> numbers(static_cast<size_t>(kPanelRows * cols));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i * 2654435761u % 255) / 127.0f - 1.0f;
    const int64_t bytes = panel_bytes(weight_.format, cols);
    pack_panel(weight_.format, numbers.data(), kPanelRows, cols, storage_.data());
    for (int64_t p = 1; p < weight_.panels(); ++p) {
      std::memcpy(storage_.data() + p * bytes, storage_.data(), static_cast<size_t>(bytes));
    }
    const kernels::Activations form = operation_.activations;
    const int64_t padded = form == kernels::Activations::kF32 ? cols : padded_cols(weight_.format, cols);
    const int64_t stride = kernels::activation_row_bytes(form, padded);
    x_ = AlignedBuffer(static_cast<size_t>(kernels::activation_bytes(form, rows, stride)));
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* const row = x_.data() + kernels::activation_offset(form, r, stride);
      kernels::prepare_row(table_, operation_, numbers.data(), cols, row, 1.0f / 127);
    }
    y_ = AlignedBuffer(static_cast<size_t>(rows * outputs) * sizeof(float));
    args_ = {x_.data(), stride, rows, weight_.data, bytes, padded, y_.as<float>(), outputs, outputs, nullptr};
  }

  // Multiplies in the runs of panels that the backend makes for few rows.
  void run() {
    const GilRelease release;
    const int64_t panels = std::clamp<int64_t>(64 * 1024 / args_.panel_stride, 1, 64);
    for (int64_t first = 0; first < weight_.panels(); first += panels) {
      kernels::MatmulArgs args = args_;
      args.panels += first * args.panel_stride;
      args.y += first * kPanelRows;
      args.outputs = std::min(panels * kPanelRows, weight_.rows - first * kPanelRows);
      (table_.*operation_.kernel)(args);
    }
  }
  int64_t weight_bytes() const { return weight_.bytes(); }
  int64_t multiply_adds() const { return rows_ * weight_.rows * weight_.cols; }

 private:
  kernels::KernelTable table_;
  const kernels::MatmulOperation& operation_;
  int64_t rows_;
  Matrix weight_;
  AlignedBuffer storage_, x_, y_;
  kernels::MatmulArgs args_ = {};
};

}  // namespace

void register_measure(py::module_& m, py::module_& testing) {
  m.def("measure_read_bandwidth", &measure_read_bandwidth, py::kw_only(), py::arg("threads"),
        py::arg("megabytes") = 512, "Memory read bandwidth in GB/s.");
  testing.def("measure_peak", &measure_peak, py::kw_only(), py::arg("kind"), py::arg("threads"),
              py::arg("tier") = py::none(),
              "1e9 multiply-adds per second on registers alone, with numbers of the kind 'f32', 'bf16' or 'i8', by the "
              "tier in use.");
  py::class_<MatmulRun>(testing, "MatmulRun", "One matmul kernel on one thread with made-up numbers, for benchmarks.")
      .def(py::init<const std::string&, const std::string&, int64_t, int64_t, int64_t>(), py::kw_only(),
           py::arg("tier"), py::arg("operation"), py::arg("rows"), py::arg("outputs"), py::arg("cols"))
      .def("run", &MatmulRun::run, "Multiplies once.")
      .def_property_readonly("weight_bytes", &MatmulRun::weight_bytes, "Bytes of weights that a run reads.")
      .def_property_readonly("multiply_adds", &MatmulRun::multiply_adds, "Multiply-adds of a run.");
}

}  // namespace gemlet::bindings
