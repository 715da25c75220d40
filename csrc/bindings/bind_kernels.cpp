// Single kernels, for tests and benchmarks: gemlet._core.testing.kernel_*.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "base/aligned_buffer.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "formats/quantize.h"
#include "formats/repack.h"
#include "formats/source_rows.h"
#include "kernels/registry.h"

namespace py = pybind11;

namespace gemlet::bindings {

kernels::KernelTable kernel_table(const std::string& tier_text) {
  const auto tier = tier_from_name(tier_text);
  if (!tier || !tier_supported(detect_cpu(), *tier)) {
    fail(ErrorCode::kUnsupported, "tier '", tier_text, "' does not run on this machine");
  }
  return kernels::kernels_for(*tier);
}

const kernels::MatmulOperation& matmul_operation(const std::string& name) {
  for (const kernels::MatmulOperation& operation : kernels::kMatmuls) {
    if (operation.name == name) return operation;
  }
  fail(ErrorCode::kInvalidRequest, "'", name, "' is not a matmul operation");
}

namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style>;

struct Packed {
  Matrix matrix;
  AlignedBuffer storage;
};

Packed pack(const std::string& format_text, const Floats& w) {
  const auto format = format_from_name(format_text);
  if (!format || w.ndim() != 2 || w.shape(0) < 1 || w.shape(1) < 1) {
    fail(ErrorCode::kInvalidRequest, "expected a format (", format_names(), ") and a matrix [rows, cols]");
  }
  Packed packed;
  packed.matrix = {*format, w.shape(0), w.shape(1), nullptr};
  packed.storage = AlignedBuffer(static_cast<size_t>(packed.matrix.bytes()));
  packed.matrix.data = packed.storage.data();
  for (int64_t p = 0; p < packed.matrix.panels(); ++p) {
    const int64_t rows = std::min(kPanelRows, w.shape(0) - p * kPanelRows);
    if (!pack_panel(*format, w.data(p * kPanelRows, 0), rows, w.shape(1),
                    packed.storage.data() + p * panel_bytes(*format, w.shape(1)))) {
      fail(ErrorCode::kTensor,
           "the matrix holds values that are not finite or too large, or too many different exponents for bf12");
    }
  }
  return packed;
}

// w in the format and back: float32 of the same shape.
py::array_t<float> roundtrip(const std::string& format, const Floats& w) {
  const Packed packed = pack(format, w);
  py::array_t<float> out({w.shape(0), w.shape(1)});
  for (int64_t r = 0; r < w.shape(0); ++r) unpack_row(packed.matrix, r, out.mutable_data(r, 0));
  return out;
}

// Rows of a file's blocks, uint8 [rows, bytes], loaded into `format` and converted back: float32 [rows, values].
py::array_t<float> blocks(const std::string& dtype, const Bytes& data, const std::string& format_text) {
  const auto type = source_type_from_name(dtype);
  const auto format = format_from_name(format_text);
  if (!type || !format || data.ndim() != 2 || data.shape(0) < 1 || data.shape(1) < 1 ||
      data.shape(1) % source_block_bytes(*type) != 0) {
    fail(ErrorCode::kInvalidRequest, "expected a type of blocks, a format, and rows of whole blocks");
  }
  const int64_t rows = data.shape(0), cols = data.shape(1) / source_block_bytes(*type) * source_block_values(*type);
  Packed packed;
  packed.matrix = {*format, rows, cols, nullptr};
  packed.storage = AlignedBuffer(static_cast<size_t>(packed.matrix.bytes()));
  packed.matrix.data = packed.storage.data();
  std::vector<float> values(static_cast<size_t>(kPanelRows * cols));
  for (int64_t p = 0; p < packed.matrix.panels(); ++p) {
    uint8_t* const panel = packed.storage.data() + p * panel_bytes(*format, cols);
    const int64_t first = p * kPanelRows, count = std::min(kPanelRows, rows - first);
    bool finite;
    if (can_repack(*format, *type)) {
      finite = repack_panel(*format, *type, data.data(first, 0), count, cols, panel);
    } else {
      widen(data.data(), *type, first * cols, count * cols, values.data());
      finite = pack_panel(*format, values.data(), count, cols, panel);
    }
    if (!finite) fail(ErrorCode::kTensor, "the blocks hold values that are not finite or too large");
  }
  py::array_t<float> out({rows, cols});
  for (int64_t r = 0; r < rows; ++r) unpack_row(packed.matrix, r, out.mutable_data(r, 0));
  return out;
}

// x [rows, cols] times w^T [cols, outputs] with the kernel that `tier` has for `operation`, a name of kernel_entries().
// `expand` says that weights in bf12 are expanded to bf16 first, as for many rows. `scale` is the scale of x, for
// operations on integers with a fixed scale.
py::array_t<float> matmul(const std::string& tier, const std::string& operation, const Floats& x, const Floats& w,
                          bool expand, float scale) {
  const kernels::KernelTable table = kernel_table(tier);
  const kernels::MatmulOperation& found = matmul_operation(operation);
  const Packed packed = pack(std::string(format_name(found.weights)), w);
  const Matrix& matrix = packed.matrix;
  if (x.ndim() != 2 || x.shape(0) < 1 || x.shape(1) != matrix.cols) {
    fail(ErrorCode::kInvalidRequest, "x must be [rows, ", matrix.cols, "]");
  }
  const int64_t rows = x.shape(0);
  py::array_t<float> y({rows, matrix.rows});
  kernels::MatmulArgs args = {
      x.data(),    matrix.cols * 4,  rows,        matrix.data, panel_bytes(matrix.format, matrix.cols),
      matrix.cols, y.mutable_data(), matrix.rows, matrix.rows, nullptr};
  AlignedBuffer prepared, expanded;
  if (expand) {
    expanded = AlignedBuffer(static_cast<size_t>(kernels::expanded_bytes(matrix.rows, matrix.cols)));
    args.scratch = expanded.data();
  }
  if (found.activations != kernels::Activations::kF32) {
    args.cols = padded_cols(matrix.format, matrix.cols);
    args.x_stride = kernels::activation_row_bytes(found.activations, args.cols);
    prepared = AlignedBuffer(static_cast<size_t>(kernels::activation_bytes(found.activations, rows, args.x_stride)));
    for (int64_t r = 0; r < rows; ++r) {
      kernels::prepare_row(table, found, x.data(r, 0), matrix.cols,
                           prepared.data() + kernels::activation_offset(found.activations, r, args.x_stride), scale);
    }
    args.x = prepared.data();
  }
  (table.*found.kernel)(args);
  return y;
}

// Attention of q [rows, head_dim] at `positions` over keys and values [tokens, head_dim] in a format of the cache.
py::array_t<float> attention(const std::string& tier, const std::string& kv, const Floats& q,
                             const std::vector<int32_t>& positions, const Floats& keys, const Floats& values,
                             int64_t window, int64_t ahead, float softcap) {
  const kernels::KernelTable table = kernel_table(tier);
  const int64_t rows = q.shape(0), dim = q.shape(1), tokens = keys.shape(0);
  const auto format = kv_format_from_name(kv);
  if (!format || rows > kernels::kMaxAttentionRows || static_cast<int64_t>(positions.size()) != rows ||
      keys.shape(1) != dim || values.shape(0) != tokens || values.shape(1) != dim || dim % 2 != 0) {
    fail(ErrorCode::kInvalidRequest, "expected a format of the cache (", kv_format_names(), ") and shapes that agree");
  }
  struct {
    kernels::kv_store_f32_fn* store;
    kernels::attention_f32_fn* attention;
  } kernel = {};
  switch (*format) {
#define GEMLET_KV_KERNELS(id, name, bits)                     \
  case KvFormat::k##id:                                       \
    kernel = {table.kv_store_##name, table.attention_##name}; \
    break;
    GEMLET_KV_FORMATS(GEMLET_KV_KERNELS)
#undef GEMLET_KV_KERNELS
  }
  const int64_t blocks = (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  const size_t block_bytes = static_cast<size_t>(kernels::kv_head_bytes(dim, bits_of(*format)));
  std::vector<AlignedBuffer> storage;
  std::vector<const uint8_t*> pointers;
  for (int64_t b = 0; b < blocks; ++b) {
    storage.emplace_back(block_bytes);
    pointers.push_back(storage.back().data());
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const kernels::KvStoreArgs store = {keys.data(t, 0), values.data(t, 0), dim, t % kKvBlockTokens,
                                        storage[static_cast<size_t>(t / kKvBlockTokens)].data()};
    kernel.store(store);
  }
  py::array_t<float> out({rows, dim});
  std::vector<const float*> q_rows;
  std::vector<float*> out_rows;
  for (int64_t r = 0; r < rows; ++r) {
    q_rows.push_back(q.data(r, 0));
    out_rows.push_back(out.mutable_data(r, 0));
  }
  std::vector<float> scratch(static_cast<size_t>(kernels::attention_scratch(dim)));
  kernels::AttentionArgs args = {};
  args.q = q_rows.data();
  args.positions = positions.data();
  args.rows = rows;
  args.head_dim = dim;
  args.blocks = pointers.data();
  args.kv_end = tokens;
  args.window = window;
  args.ahead = ahead;
  args.softcap = softcap;
  args.out = out_rows.data();
  args.scratch = scratch.data();
  kernel.attention(args);
  return out;
}

// A row operation on x [dim]. `other` is the weight, the second operand or the cosines, whatever the operation needs.
py::array_t<float> rowwise(const std::string& tier, const std::string& operation, const Floats& x, const Floats& other,
                           const Floats& third, float scalar) {
  const kernels::KernelTable table = kernel_table(tier);
  const int64_t dim = x.size();
  py::array_t<float> out(dim);
  float* const to = out.mutable_data();
  std::copy_n(x.data(), dim, to);
  if (operation == "rms_norm") {
    table.rms_norm(x.data(), other.data(), scalar, dim, to);
  } else if (operation == "rms_norm_add") {
    table.rms_norm_add(third.data(), other.data(), scalar, dim, to);
  } else if (operation == "add") {
    table.add(other.data(), dim, to);
  } else if (operation == "gelu_mul") {
    table.gelu_mul(x.data(), other.data(), dim, to);
  } else if (operation == "exact_gelu_mul") {
    table.exact_gelu_mul(x.data(), other.data(), dim, to);
  } else if (operation == "sigmoid_mul") {
    table.sigmoid_mul(x.data(), other.data(), dim, to);
  } else if (operation == "softcap") {
    table.softcap(scalar, dim, to);
  } else if (operation == "rope") {
    table.rope(other.data(), third.data(), scalar, dim, to);
  } else if (operation == "row_max") {
    std::fill_n(to, dim, table.row_max(x.data(), dim));
  } else {
    fail(ErrorCode::kInvalidRequest, "unknown row operation '", operation, "'");
  }
  return out;
}

}  // namespace

void register_kernels(py::module_& testing) {
  testing.def(
      "kernel_entries",
      [] {
        std::vector<std::pair<std::string, std::string>> result;
        for (const kernels::KernelEntry& entry : kernels::kernel_entries()) {
          result.emplace_back(entry.operation, tier_name(entry.tier));
        }
        return result;
      },
      "(operation, tier) of every kernel compiled in.");
  testing.def("kernel_roundtrip", &roundtrip, py::kw_only(), py::arg("format"), py::arg("w"),
              "w in a weight format and back: float32 of the same shape.");
  testing.def("kernel_blocks", &blocks, py::kw_only(), py::arg("dtype"), py::arg("data"), py::arg("format"),
              "Rows of a file's blocks, uint8 [rows, bytes], loaded into a format and converted back to float32 [rows, "
              "values].");
  testing.def(
      "kernel_matmul", &matmul, py::kw_only(), py::arg("tier"), py::arg("operation"), py::arg("x"), py::arg("w"),
      py::arg("expand") = false, py::arg("scale") = 0.0f,
      "x [rows, cols] times w [outputs, cols] transposed, with the kernel that `tier` has for `operation`. `expand`: "
      "weights in bf12 are expanded to bf16 first, as for many rows.");
  testing.def(
      "kernel_attention", &attention, py::kw_only(), py::arg("tier"), py::arg("kv"), py::arg("q"), py::arg("positions"),
      py::arg("keys"), py::arg("values"), py::arg("window") = 0, py::arg("ahead") = 0, py::arg("softcap") = 0.0f,
      "Attention of q [rows, head_dim] at `positions` over keys and values [tokens, head_dim]; kv is a format of "
      "the cache.");
  testing.def("kernel_rowwise", &rowwise, py::kw_only(), py::arg("tier"), py::arg("operation"), py::arg("x"),
              py::arg("other"), py::arg("third"), py::arg("scalar"),
              "A row operation on x [dim]; `other` and `third` are its further operands.");
}

}  // namespace gemlet::bindings
