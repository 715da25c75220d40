#include "backend/cuda/graphs.h"

#include <algorithm>
#include <cstring>

namespace gemlet::cuda {
namespace {

constexpr size_t kMostEntries = 256;  // a pass of a model with experts has a part for each layer
constexpr size_t kLeastLaunches = 4;  // shorter lists are launched one by one
constexpr size_t kAlignment = 16;

constexpr size_t kArgBytes[] = {
#define GEMLET_SIZE(name, Args) sizeof(Args),
    GEMLET_CUDA_KERNELS(GEMLET_SIZE)
#undef GEMLET_SIZE
};

size_t arg_bytes(Kernel kernel) { return kArgBytes[static_cast<size_t>(kernel)]; }
unsigned narrow(int64_t count) { return static_cast<unsigned>(count); }

}  // namespace

void LaunchList::add(Kernel kernel, const Grid& grid, int threads, int64_t shared_bytes, const void* args) {
  const size_t at = (bytes_.size() + kAlignment - 1) / kAlignment * kAlignment;
  bytes_.resize(at + arg_bytes(kernel));
  std::memcpy(bytes_.data() + at, args, arg_bytes(kernel));
  launches_.push_back({kernel, grid, static_cast<unsigned>(threads), narrow(shared_bytes), at});
}

void LaunchList::clear() {
  launches_.clear();
  bytes_.clear();
}

bool LaunchList::same_kernels(const LaunchList& other) const {
  return std::equal(launches_.begin(), launches_.end(), other.launches_.begin(), other.launches_.end(),
                    [](const Launch& a, const Launch& b) { return a.kernel == b.kernel; });
}

bool LaunchList::same_launch(const LaunchList& other, size_t index) const {
  const Launch &a = launches_[index], &b = other.launches_[index];
  return a.grid == b.grid && a.threads == b.threads && a.shared_bytes == b.shared_bytes &&
         std::memcmp(bytes_.data() + a.args, other.bytes_.data() + b.args, arg_bytes(a.kernel)) == 0;
}

void Graphs::open(const api::Functions& functions, std::vector<api::Function> kernels) {
  functions_ = functions;
  kernels_ = std::move(kernels);
}

void Graphs::close() noexcept {
  for (Entry& entry : entries_) drop(entry);
  entries_.clear();
}

void Graphs::drop(Entry& entry) const noexcept {
  if (entry.executable) functions_.cuGraphExecDestroy(entry.executable);
  if (entry.graph) functions_.cuGraphDestroy(entry.graph);
}

api::Result Graphs::launch(Kernel kernel, const Grid& grid, unsigned threads, unsigned shared_bytes, const void* args,
                           api::Stream stream) const {
  void* params[] = {const_cast<void*>(args)};  // the driver only reads them
  return functions_.cuLaunchKernel(kernels_[static_cast<size_t>(kernel)], narrow(grid.x), narrow(grid.y),
                                   narrow(grid.z), threads, 1, 1, shared_bytes, stream, params, nullptr);
}

api::KernelNode Graphs::node_of(const LaunchList::Launch& launch, void** params) const {
  api::KernelNode node = {};
  node.function = kernels_[static_cast<size_t>(launch.kernel)];
  node.grid_x = narrow(launch.grid.x);
  node.grid_y = narrow(launch.grid.y);
  node.grid_z = narrow(launch.grid.z);
  node.block_x = launch.threads;
  node.block_y = node.block_z = 1;
  node.shared_bytes = launch.shared_bytes;
  node.params = params;
  return node;
}

// Each node depends on the one before it, as in a stream.
api::Result Graphs::build(Entry& entry) const {
  api::Result result = functions_.cuGraphCreate(&entry.graph, 0);
  for (size_t i = 0; i < entry.list.launches().size() && result == api::kSuccess; ++i) {
    void* params[] = {entry.list.args(i)};
    const api::KernelNode params_of = node_of(entry.list.launches()[i], params);
    api::Node node = nullptr;
    result = functions_.cuGraphAddKernelNode_v2(&node, entry.graph, entry.nodes.empty() ? nullptr : &entry.nodes.back(),
                                                entry.nodes.empty() ? 0 : 1, &params_of);
    entry.nodes.push_back(node);
  }
  if (result != api::kSuccess) return result;
  return functions_.cuGraphInstantiateWithFlags(&entry.executable, entry.graph, 0);
}

// Gives the graph the arguments of `list`. Graph launches that the GPU has not finished keep their old arguments.
api::Result Graphs::update(Entry& entry, LaunchList& list) const {
  for (size_t i = 0; i < list.launches().size(); ++i) {
    if (list.same_launch(entry.list, i)) continue;
    void* params[] = {list.args(i)};
    const api::KernelNode node = node_of(list.launches()[i], params);
    const api::Result result = functions_.cuGraphExecKernelNodeSetParams_v2(entry.executable, entry.nodes[i], &node);
    if (result != api::kSuccess) return result;
  }
  return api::kSuccess;
}

api::Result Graphs::run(LaunchList& list, size_t segment, api::Stream stream) {
  const size_t count = list.launches().size();
  auto entry = count < kLeastLaunches
                   ? entries_.end()
                   : std::find_if(
                         entries_.begin(), entries_.end(),
                         [&](const Entry& e) { return e.segment == segment && e.list.same_kernels(list); });
  if (entry == entries_.end()) {
    for (size_t i = 0; i < count; ++i) {
      const LaunchList::Launch& one = list.launches()[i];
      const api::Result result = launch(one.kernel, one.grid, one.threads, one.shared_bytes, list.args(i), stream);
      if (result != api::kSuccess) return result;
    }
    if (count < kLeastLaunches) return api::kSuccess;
    entries_.push_front({segment, list, nullptr, nullptr, {}});
    if (entries_.size() > kMostEntries) {
      drop(entries_.back());
      entries_.pop_back();
    }
    return api::kSuccess;
  }
  entries_.splice(entries_.begin(), entries_, entry);
  api::Result result = entry->executable ? update(*entry, list) : api::kSuccess;
  std::swap(entry->list, list);
  if (!entry->executable && result == api::kSuccess) result = build(*entry);
  return result == api::kSuccess ? functions_.cuGraphLaunch(entry->executable, stream) : result;
}

}  // namespace gemlet::cuda
