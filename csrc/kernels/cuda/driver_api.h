// The functions of CUDA's driver (libcuda.so.1) that gemlet calls, as NVIDIA's manual "CUDA Driver API" declares them.
// The backend looks them up at run time. emulated/driver.cpp implements them for tests.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace gemlet::cuda::api {

using Result = int;
using Gpu = int;
using Address = unsigned long long;
using Context = struct ContextOfDriver*;
using Stream = struct StreamOfDriver*;
using Module = struct ModuleOfDriver*;
using Function = struct FunctionOfDriver*;
using Graph = struct GraphOfDriver*;
using Node = struct NodeOfDriver*;
using Executable = struct ExecutableOfDriver*;

inline constexpr Result kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kNoDevice = 100,
                        kNotFound = 500, kIllegalAddress = 700, kLaunchFailed = 719, kSystemDriverMismatch = 803;
inline constexpr int kComputeMajor = 75, kComputeMinor = 76;  // attributes of a GPU
inline constexpr unsigned kNonBlockingStream = 1;

// CUDA_KERNEL_NODE_PARAMS_v2
struct KernelNode {
  Function function;
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  void** params;
  void** extra;
  void* kernel;
  Context context;
};

// Every function once: X(name, arguments).
#define GEMLET_DRIVER_FUNCTIONS(X)                                                                             \
  X(cuInit, (unsigned flags))                                                                                  \
  X(cuDriverGetVersion, (int* version))                                                                        \
  X(cuGetErrorName, (Result error, const char** name))                                                         \
  X(cuDeviceGetCount, (int* count))                                                                            \
  X(cuDeviceGet, (Gpu * gpu, int ordinal))                                                                     \
  X(cuDeviceGetName, (char* name, int bytes, Gpu gpu))                                                         \
  X(cuDeviceGetAttribute, (int* value, int attribute, Gpu gpu))                                                \
  X(cuDeviceTotalMem_v2, (size_t* bytes, Gpu gpu))                                                             \
  X(cuDevicePrimaryCtxRetain, (Context * context, Gpu gpu))                                                    \
  X(cuDevicePrimaryCtxRelease_v2, (Gpu gpu))                                                                   \
  X(cuCtxPushCurrent_v2, (Context context))                                                                    \
  X(cuCtxPopCurrent_v2, (Context * context))                                                                   \
  X(cuMemGetInfo_v2, (size_t* free, size_t* total))                                                            \
  X(cuMemAlloc_v2, (Address * memory, size_t bytes))                                                           \
  X(cuMemFree_v2, (Address memory))                                                                            \
  X(cuMemHostAlloc, (void** memory, size_t bytes, unsigned flags))                                             \
  X(cuMemFreeHost, (void* memory))                                                                             \
  X(cuMemsetD8Async, (Address memory, unsigned char value, size_t bytes, Stream stream))                       \
  X(cuMemcpyHtoDAsync_v2, (Address memory, const void* host, size_t bytes, Stream stream))                     \
  X(cuMemcpyDtoHAsync_v2, (void* host, Address memory, size_t bytes, Stream stream))                           \
  X(cuModuleLoadData, (Module * module, const void* image))                                                    \
  X(cuModuleUnload, (Module module))                                                                           \
  X(cuModuleGetFunction, (Function * function, Module module, const char* name))                               \
  X(cuStreamCreate, (Stream * stream, unsigned flags))                                                         \
  X(cuStreamDestroy_v2, (Stream stream))                                                                       \
  X(cuStreamSynchronize, (Stream stream))                                                                      \
  X(cuLaunchKernel,                                                                                            \
    (Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
     unsigned block_z, unsigned shared_bytes, Stream stream, void** params, void** extra))                     \
  X(cuGraphCreate, (Graph * graph, unsigned flags))                                                            \
  X(cuGraphDestroy, (Graph graph))                                                                             \
  X(cuGraphAddKernelNode_v2,                                                                                   \
    (Node * node, Graph graph, const Node* dependencies, size_t count, const KernelNode* params))              \
  X(cuGraphInstantiateWithFlags, (Executable * executable, Graph graph, unsigned long long flags))             \
  X(cuGraphExecDestroy, (Executable executable))                                                               \
  X(cuGraphExecKernelNodeSetParams_v2, (Executable executable, Node node, const KernelNode* params))           \
  X(cuGraphLaunch, (Executable executable, Stream stream))

struct Functions {
#define GEMLET_DECLARE_POINTER(name, args) Result(*name) args = nullptr;
  GEMLET_DRIVER_FUNCTIONS(GEMLET_DECLARE_POINTER)
#undef GEMLET_DECLARE_POINTER
};

}  // namespace gemlet::cuda::api
