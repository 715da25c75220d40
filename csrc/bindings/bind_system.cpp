#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <bit>
#include <cstdlib>
#include <map>
#include <optional>

#include "backend/backend.h"
#include "base/cpu_features.h"
#include "base/cpu_limits.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "kernels/registry.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

// clang-format off
#define GEMLET_CPU_FLAGS(X) \
  X(sse2) X(avx) X(f16c) X(fma) X(avx2) X(avx512f) X(avx512bw) X(avx512vl) X(avx512dq) X(avx512vnni) X(avx512bf16) \
  X(avxvnni) X(amx_tile) X(amx_int8) X(amx_bf16) X(amx_granted) X(osxsave) \
  X(asimd) X(asimddp) X(i8mm)
// clang-format on

std::vector<std::string> names(const std::vector<Tier>& tiers) {
  std::vector<std::string> result;
  for (const Tier tier : tiers) result.emplace_back(tier_name(tier));
  return result;
}

py::typing::Dict<py::str, py::object> cpu_info() {
  const CpuFacts facts = detect_cpu();
  const TierChoice choice = choose_tier(facts, std::getenv("GEMLET_CPU"));
  std::vector<std::string> features;
#define GEMLET_ADD_FLAG(flag) \
  if (facts.flag) features.emplace_back(#flag);
  GEMLET_CPU_FLAGS(GEMLET_ADD_FLAG)
#undef GEMLET_ADD_FLAG
  std::map<std::string, std::string> kernels;
  for (const kernels::KernelEntry& entry : kernels::kernel_entries()) {
    kernels[std::string(entry.operation)] =
        std::string(tier_name(kernels::resolved_tier(entry.operation, choice.tier)));
  }
  const CpuLimits limits = detect_cpu_limits();
  py::typing::Dict<py::str, py::object> result;
  result["tiers"] = names(supported_tiers(facts));
  result["tier"] = std::string(tier_name(choice.tier));
  result["reason"] = choice.reason;
  result["features"] = features;
  result["kernels"] = kernels;
  result["affinity"] = limits.affinity;
  result["cgroup_quota"] = limits.cgroup_quota;
  result["physical_cores"] = limits.physical_cores;
  result["memory_nodes"] = std::popcount(memory_nodes());
  return result;
}

py::typing::Dict<py::str, py::object> cuda_info_dict() {
  const auto reason = [](const std::string& text) {
    return text.empty() ? std::optional<std::string>() : std::optional<std::string>(text);
  };
  const CudaInfo info = [] {
    const GilRelease release;
    return cuda_info();
  }();
  py::list gpus;
  for (const GpuInfo& gpu : info.gpus) {
    py::typing::Dict<py::str, py::object> one;
    one["name"] = gpu.name;
    one["capability"] = gpu.capability;
    one["memory"] = gpu.memory;
    one["refusal"] = reason(gpu.refusal);
    gpus.append(one);
  }
  py::typing::Dict<py::str, py::object> result;
  result["version"] = info.version;
  result["refusal"] = reason(info.refusal);
  result["gpus"] = gpus;
  return result;
}

// The choice for a machine that is described by the names of its features and XCR0. For tests of the dispatch.
std::pair<std::string, std::vector<std::string>> choose_tier_for(const std::vector<std::string>& features,
                                                                 uint64_t xcr0,
                                                                 const std::optional<std::string>& forced) {
  CpuFacts facts;
  facts.xcr0 = xcr0;
  for (const std::string& feature : features) {
#define GEMLET_SET_FLAG(flag) \
  if (feature == #flag) {     \
    facts.flag = true;        \
    continue;                 \
  }
    GEMLET_CPU_FLAGS(GEMLET_SET_FLAG)
#undef GEMLET_SET_FLAG
    fail(ErrorCode::kInvalidRequest, "unknown CPU feature '", feature, "'");
  }
  const TierChoice choice = choose_tier(facts, forced ? forced->c_str() : nullptr);
  return {std::string(tier_name(choice.tier)), names(supported_tiers(facts))};
}

}  // namespace

void register_system(py::module_& m, py::module_& testing) {
  m.def("cpu_info", &cpu_info, "CPU features, tiers found, tier in use and why, kernel tiers, limits on threads.");
  m.def("cuda_info", &cuda_info_dict,
        "The CUDA version of the driver (0: none), why device 'cuda' is not used (None: it can be), and all GPUs.");
  m.def(
      "free_memory", [](const std::string& device) { return make_backend(device, {})->free_memory(); },
      py::arg("device"), py::call_guard<GilRelease>(), "Bytes of a GPU's memory that are free; 0 for 'cpu'.");
  m.def(
      "default_threads",
      [](const std::string& files) {
        const ThreadChoice choice = default_threads(detect_cpu_limits(files));
        return std::pair(choice.threads, choice.reason);
      },
      py::kw_only(), py::arg("files") = "",
      "Threads used when none are asked for, and why. Tests keep /proc and /sys in the folder `files`.");
  m.def("available_memory", &available_memory, py::kw_only(), py::arg("files") = "",
        "Bytes of memory that this process may still take, of the machine's and within its cgroup's limit.");
  m.def("return_free_memory", &return_free_memory, py::call_guard<GilRelease>(),
        "Returns freed memory that malloc still holds to the system.");
  testing.def("parse_nodes", &parse_nodes, py::arg("list"), "The NUMA nodes of a list like '0-1,4', as bits.");
  testing.def("choose_tier", &choose_tier_for, py::kw_only(), py::arg("features"), py::arg("xcr0"),
              py::arg("forced") = py::none(),
              "(tier, supported tiers) of a machine described by feature names and XCR0.");
}

}  // namespace gemlet::bindings
