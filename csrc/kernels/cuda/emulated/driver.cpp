// An implementation of CUDA's driver with the emulator. An emulated build opens this shared library in place of
// libcuda.so.1.
//
// It is strict in these points, so that tests find faults:
// - The work of a stream is done only when somebody waits for the stream.
// - New memory holds NaN. Copies must be inside of allocations, and nothing may be written just after an allocation.
// - Every call needs a context, and the process that called cuInit().
// - After a fault, every call fails.
//
// GEMLET_EMULATED_GPU describes the GPU and how it fails, for example
// "version=12040,gpus=1,capability=75,memory=1000000,lost_after=10", where the last number counts launches.
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/cuda/driver_api.h"
#include "kernels/cuda/emulated/cuda.h"
#include "kernels/cuda/kernels.h"

namespace gemlet::cuda {

#define GEMLET_DECLARE_FUNCTION(name, Args) void name(const Args args);
GEMLET_CUDA_KERNELS(GEMLET_DECLARE_FUNCTION)
#undef GEMLET_DECLARE_FUNCTION

namespace api {

struct ContextOfDriver {};
struct StreamOfDriver {};
struct ModuleOfDriver {};
struct FunctionOfDriver {
  const char* name;
  size_t arg_bytes;
  void (*run)(const void* args);
};

struct Launch {
  const FunctionOfDriver* function;
  emulated::Launch sizes;
  std::vector<uint64_t> args;
};
struct NodeOfDriver {
  Launch launch;
};
struct GraphOfDriver {
  std::vector<std::unique_ptr<NodeOfDriver>> nodes;
};
struct ExecutableOfDriver {
  std::map<Node, size_t> places;
  std::vector<Launch> launches;
};

namespace {

constexpr size_t kAlignment = 256, kMostSharedBytes = 48 << 10;
constexpr unsigned kMostThreads = 1024, kMostBlocks = 65535;  // kMostBlocks is for y and z
constexpr Result kInvalidContext = 201;
// The number of guard bytes after every allocation. AddressSanitizer has its own, so with it this is 0.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kBehindBytes = 0;
#else
constexpr size_t kBehindBytes = 64;
#endif
constexpr uint8_t kBehind = 0xa5;

const FunctionOfDriver kFunctions[] = {
#define GEMLET_FUNCTION(name, Args) \
  {#name, sizeof(Args), [](const void* args) { name(*static_cast<const Args*>(args)); }},
    GEMLET_CUDA_KERNELS(GEMLET_FUNCTION)
#undef GEMLET_FUNCTION
};

struct Machine {
  std::mutex mutex;
  pid_t process = 0;  // 0: cuInit() has not been called
  Result fault = kSuccess;
  uint64_t launches = 0;  // seeds of the order of threads
  std::map<Address, size_t> allocations;
  std::map<const uint8_t*, size_t> pinned;
  size_t used = 0;
  std::deque<std::function<Result()>> stream;
  ContextOfDriver context;
  StreamOfDriver the_stream;
  ModuleOfDriver module;
};
Machine& machine() {
  static Machine& one = *new Machine;
  return one;
}
thread_local std::vector<Context> contexts;

long long setting(const std::string& name, long long otherwise) {
  const char* const text = std::getenv("GEMLET_EMULATED_GPU");
  const std::string all = std::string(",") + (text ? text : "");
  const size_t at = all.find("," + name + "=");
  return at == std::string::npos ? otherwise : std::atoll(all.c_str() + at + name.size() + 2);
}
size_t memory_bytes() { return static_cast<size_t>(setting("memory", 64ll << 30)); }

Result state(bool needs_context) {
  if (machine().process != getpid()) return kNotInitialized;
  if (machine().fault != kSuccess) return machine().fault;
  return needs_context && contexts.empty() ? kInvalidContext : kSuccess;
}

bool written_behind() {
  for (const auto& [memory, bytes] : machine().allocations) {
    const auto* const behind = reinterpret_cast<const uint8_t*>(memory) + bytes;
    if (std::any_of(behind, behind + kBehindBytes, [](uint8_t byte) { return byte != kBehind; })) return true;
  }
  return false;
}

// Runs all work of the stream.
Result drain() {
  Machine& m = machine();
  while (!m.stream.empty() && m.fault == kSuccess) {
    const std::function<Result()> next = std::move(m.stream.front());
    m.stream.pop_front();
    m.fault = next();
  }
  if (m.fault == kSuccess && written_behind()) m.fault = kIllegalAddress;
  return m.fault;
}

bool is_allocated(Address memory, size_t bytes) {
  auto after = machine().allocations.upper_bound(memory);
  if (after == machine().allocations.begin()) return false;
  --after;
  return memory + bytes <= after->first + after->second;
}

bool is_pinned(const void* host, size_t bytes) {
  const auto* const from = static_cast<const uint8_t*>(host);
  auto after = machine().pinned.upper_bound(from);
  if (after == machine().pinned.begin()) return false;
  --after;
  return from + bytes <= after->first + after->second;
}

uint8_t* pointer(Address memory) { return reinterpret_cast<uint8_t*>(memory); }

Result read_launch(const KernelNode& node, Launch& launch) {
  const emulated::Index blocks = {node.grid_x, node.grid_y, node.grid_z};
  const bool possible = blocks.x > 0 && blocks.y > 0 && blocks.z > 0 && blocks.x < 1u << 31 &&
                        blocks.y <= kMostBlocks && blocks.z <= kMostBlocks && node.block_x > 0 &&
                        node.block_x <= kMostThreads && node.block_y == 1 && node.block_z == 1 &&
                        node.shared_bytes <= kMostSharedBytes;
  if (!possible) return kInvalidValue;
  launch = {node.function, {blocks, node.block_x, node.shared_bytes, 0}, {}};
  launch.args.resize((node.function->arg_bytes + 7) / 8);
  std::memcpy(launch.args.data(), node.params[0], node.function->arg_bytes);
  return kSuccess;
}

Result run(Launch& launch) {
  launch.sizes.seed = ++machine().launches;
  if (static_cast<long long>(launch.sizes.seed) > setting("lost_after", 1ll << 62)) return kIllegalAddress;
  try {
    emulated::run(launch.function->run, launch.args.data(), launch.sizes);
    return kSuccess;
  } catch (const std::exception&) {
    return kLaunchFailed;
  }
}

}  // namespace

#define GEMLET_API extern "C" __attribute__((visibility("default"))) Result
#define GEMLET_ENTER(needs_context)            \
  const std::lock_guard lock(machine().mutex); \
  if (const Result now = state(needs_context); now != kSuccess) return now

GEMLET_API cuInit(unsigned) {
  const std::lock_guard lock(machine().mutex);
  Machine& m = machine();
  if (m.process != 0 && m.process != getpid()) return kNotInitialized;
  if (const auto error = static_cast<Result>(setting("init", kSuccess))) return error;
  m.process = getpid();
  return kSuccess;
}

GEMLET_API cuDriverGetVersion(int* version) {
  *version = static_cast<int>(setting("version", 13000));
  return kSuccess;
}

GEMLET_API cuGetErrorName(Result error, const char** name) {
  const std::map<Result, const char*> names = {{kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
                                               {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
                                               {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED"},
                                               {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
                                               {kNotFound, "CUDA_ERROR_NOT_FOUND"},
                                               {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                               {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
                                               {kSystemDriverMismatch, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}};
  const auto found = names.find(error);
  if (found == names.end()) return kInvalidValue;
  *name = found->second;
  return kSuccess;
}

GEMLET_API cuDeviceGetCount(int* count) {
  GEMLET_ENTER(false);
  *count = static_cast<int>(setting("gpus", 1));
  return kSuccess;
}

GEMLET_API cuDeviceGet(Gpu* gpu, int ordinal) {
  GEMLET_ENTER(false);
  *gpu = ordinal;
  return kSuccess;
}

GEMLET_API cuDeviceGetName(char* name, int bytes, Gpu) {
  GEMLET_ENTER(false);
  std::strncpy(name, "emulated GPU", static_cast<size_t>(bytes));
  return kSuccess;
}

GEMLET_API cuDeviceGetAttribute(int* value, int attribute, Gpu) {
  GEMLET_ENTER(false);
  const auto capability = static_cast<int>(setting("capability", 90));
  *value = attribute == kComputeMajor ? capability / 10 : attribute == kComputeMinor ? capability % 10 : 1;
  return kSuccess;
}

GEMLET_API cuDeviceTotalMem_v2(size_t* bytes, Gpu) {
  GEMLET_ENTER(false);
  *bytes = memory_bytes();
  return kSuccess;
}

GEMLET_API cuDevicePrimaryCtxRetain(Context* context, Gpu) {
  GEMLET_ENTER(false);
  *context = &machine().context;
  return kSuccess;
}

GEMLET_API cuDevicePrimaryCtxRelease_v2(Gpu) {
  GEMLET_ENTER(false);
  return kSuccess;
}

GEMLET_API cuCtxPushCurrent_v2(Context context) {
  GEMLET_ENTER(false);
  contexts.push_back(context);
  return kSuccess;
}

GEMLET_API cuCtxPopCurrent_v2(Context* context) {
  if (contexts.empty()) return kInvalidContext;
  *context = contexts.back();
  contexts.pop_back();
  return kSuccess;
}

GEMLET_API cuMemGetInfo_v2(size_t* free, size_t* total) {
  GEMLET_ENTER(true);
  *total = memory_bytes();
  *free = *total - std::min(*total, machine().used);
  return kSuccess;
}

GEMLET_API cuMemAlloc_v2(Address* memory, size_t bytes) {
  GEMLET_ENTER(true);
  Machine& m = machine();
  if (bytes == 0) return kInvalidValue;
  if (bytes > memory_bytes() || m.used > memory_bytes() - bytes) return kOutOfMemory;
  void* const room = std::aligned_alloc(kAlignment, (bytes + kBehindBytes + kAlignment - 1) / kAlignment * kAlignment);
  if (!room) return kOutOfMemory;
  std::memset(room, 0xff, bytes);  // NaN
  std::memset(static_cast<uint8_t*>(room) + bytes, kBehind, kBehindBytes);
  *memory = reinterpret_cast<Address>(room);
  m.allocations[*memory] = bytes;
  m.used += bytes;
  return kSuccess;
}

GEMLET_API cuMemFree_v2(Address memory) {
  GEMLET_ENTER(true);
  Machine& m = machine();
  const auto found = m.allocations.find(memory);
  if (found == m.allocations.end()) return kInvalidValue;
  const Result result = drain();
  m.used -= found->second;
  m.allocations.erase(found);
  std::free(pointer(memory));
  return result;
}

GEMLET_API cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  GEMLET_ENTER(true);
  *memory = std::malloc(bytes);
  if (!*memory) return kOutOfMemory;
  machine().pinned[static_cast<const uint8_t*>(*memory)] = bytes;
  return kSuccess;
}

GEMLET_API cuMemFreeHost(void* memory) {
  GEMLET_ENTER(true);
  if (machine().pinned.erase(static_cast<const uint8_t*>(memory)) == 0) return kInvalidValue;
  std::free(memory);
  return kSuccess;
}

GEMLET_API cuMemsetD8Async(Address memory, unsigned char value, size_t bytes, Stream) {
  GEMLET_ENTER(true);
  if (!is_allocated(memory, bytes)) return kInvalidValue;
  machine().stream.emplace_back([=] {
    std::memset(pointer(memory), value, bytes);
    return kSuccess;
  });
  return kSuccess;
}

GEMLET_API cuMemcpyHtoDAsync_v2(Address memory, const void* host, size_t bytes, Stream) {
  GEMLET_ENTER(true);
  if (!is_allocated(memory, bytes)) return kInvalidValue;
  if (is_pinned(host, bytes)) {
    machine().stream.emplace_back([=] {
      std::memcpy(pointer(memory), host, bytes);
      return kSuccess;
    });
    return kSuccess;
  }
  const Result result = drain();
  if (result == kSuccess) std::memcpy(pointer(memory), host, bytes);
  return result;
}

GEMLET_API cuMemcpyDtoHAsync_v2(void* host, Address memory, size_t bytes, Stream) {
  GEMLET_ENTER(true);
  if (!is_allocated(memory, bytes)) return kInvalidValue;
  const Result result = drain();
  if (result == kSuccess) std::memcpy(host, pointer(memory), bytes);
  return result;
}

GEMLET_API cuModuleLoadData(Module* module, const void*) {
  GEMLET_ENTER(true);
  *module = &machine().module;
  return kSuccess;
}

GEMLET_API cuModuleUnload(Module) {
  GEMLET_ENTER(true);
  return kSuccess;
}

GEMLET_API cuModuleGetFunction(Function* function, Module, const char* name) {
  GEMLET_ENTER(true);
  for (const FunctionOfDriver& one : kFunctions) {
    if (std::strcmp(one.name, name) == 0) {
      *function = const_cast<Function>(&one);
      return kSuccess;
    }
  }
  return kNotFound;
}

GEMLET_API cuStreamCreate(Stream* stream, unsigned) {
  GEMLET_ENTER(true);
  *stream = &machine().the_stream;
  return kSuccess;
}

GEMLET_API cuStreamDestroy_v2(Stream) {
  GEMLET_ENTER(true);
  return kSuccess;
}

GEMLET_API cuStreamSynchronize(Stream) {
  GEMLET_ENTER(true);
  return drain();
}

GEMLET_API cuLaunchKernel(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream, void** params, void**) {
  GEMLET_ENTER(true);
  Launch launch;
  const Result result = read_launch(
      {function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, params, nullptr, nullptr, nullptr},
      launch);
  if (result != kSuccess) return result;
  machine().stream.emplace_back([launch]() mutable { return run(launch); });
  return kSuccess;
}

GEMLET_API cuGraphCreate(Graph* graph, unsigned) {
  GEMLET_ENTER(true);
  *graph = new GraphOfDriver;
  return kSuccess;
}

GEMLET_API cuGraphDestroy(Graph graph) {
  GEMLET_ENTER(true);
  delete graph;
  return kSuccess;
}

// A node may depend only on the node before it, so nodes are launched in the order in which they were added.
GEMLET_API cuGraphAddKernelNode_v2(Node* node, Graph graph, const Node* dependencies, size_t count,
                                   const KernelNode* params) {
  GEMLET_ENTER(true);
  const bool first = graph->nodes.empty();
  if (count != (first ? 0 : 1) || (!first && dependencies[0] != graph->nodes.back().get())) return kInvalidValue;
  graph->nodes.push_back(std::make_unique<NodeOfDriver>());
  *node = graph->nodes.back().get();
  return read_launch(*params, (*node)->launch);
}

GEMLET_API cuGraphInstantiateWithFlags(Executable* executable, Graph graph, unsigned long long) {
  GEMLET_ENTER(true);
  *executable = new ExecutableOfDriver;
  for (const auto& node : graph->nodes) {
    (*executable)->places[node.get()] = (*executable)->launches.size();
    (*executable)->launches.push_back(node->launch);
  }
  return kSuccess;
}

GEMLET_API cuGraphExecDestroy(Executable executable) {
  GEMLET_ENTER(true);
  delete executable;
  return kSuccess;
}

GEMLET_API cuGraphExecKernelNodeSetParams_v2(Executable executable, Node node, const KernelNode* params) {
  GEMLET_ENTER(true);
  const auto found = executable->places.find(node);
  if (found == executable->places.end()) return kInvalidValue;
  Launch& launch = executable->launches[found->second];
  return launch.function == params->function ? read_launch(*params, launch) : kInvalidValue;
}

GEMLET_API cuGraphLaunch(Executable executable, Stream) {
  GEMLET_ENTER(true);
  machine().stream.emplace_back([launches = executable->launches]() mutable {
    Result result = kSuccess;
    for (Launch& launch : launches) {
      if (result == kSuccess) result = run(launch);
    }
    return result;
  });
  return kSuccess;
}

}  // namespace api
}  // namespace gemlet::cuda
