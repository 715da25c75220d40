#include "backend/cuda/device.h"

#include <algorithm>
#include <utility>

#include "backend/cuda/image.h"
#include "base/error.h"
#include "base/fork_mutex.h"

namespace gemlet::cuda {
namespace {

constexpr const char* kNames[] = {
#define GEMLET_NAME(name, Args) #name,
    GEMLET_CUDA_KERNELS(GEMLET_NAME)
#undef GEMLET_NAME
};
constexpr size_t kNearBytes = 256;  // arrays that are less than this apart go into one copy

api::Address address(const void* memory) { return reinterpret_cast<api::Address>(memory); }

}  // namespace

// Reserves the device for this thread until the end of the scope.
class Device::Use {
 public:
  explicit Use(Device& device) : device_(device) {
    if (device.generation_ != fork_generation()) {
      fail(ErrorCode::kUnsupported,
           "a model on a GPU cannot be used in a forked process; load it there, or start the process with 'spawn'");
    }
    lock_ = std::unique_lock(device.mutex_);
    if (!device.lost_.empty()) fail(ErrorCode::kDevice, device.lost_);
    device.check(device.driver_.functions.cuCtxPushCurrent_v2(device.context_), "making its context current");
  }
  ~Use() {
    api::Context context;
    device_.driver_.functions.cuCtxPopCurrent_v2(&context);
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  Device& device_;
  std::unique_lock<std::mutex> lock_;
};

Device::Device() : driver_(find_driver()), generation_(fork_generation()) {
  if (!driver_.refusal.empty()) fail(ErrorCode::kUnsupported, driver_.refusal);
  gpu_ = *std::find_if(driver_.gpus.begin(), driver_.gpus.end(), [](const Gpu& gpu) { return gpu.refusal.empty(); });
  const api::Functions& f = driver_.functions;
  check(f.cuDevicePrimaryCtxRetain(&context_, gpu_.handle), "creating a context");
  try {
    const Use use(*this);
    check(f.cuStreamCreate(&stream_, api::kNonBlockingStream), "creating a stream");
    check(f.cuModuleLoadData(&module_, gemlet_cuda_image), "loading the kernels");
    std::vector<api::Function> kernels;
    for (const char* const name : kNames) {
      kernels.emplace_back();
      check(f.cuModuleGetFunction(&kernels.back(), module_, name), "looking for a kernel");
    }
    graphs_.open(f, std::move(kernels));
  } catch (...) {
    close();
    throw;
  }
}

Device::~Device() {
  if (generation_ == fork_generation()) close();
}

// Ignores errors, because the driver may have shut down already.
void Device::close() noexcept {
  const api::Functions& f = driver_.functions;
  if (f.cuCtxPushCurrent_v2(context_) == api::kSuccess) {
    if (stream_) f.cuStreamSynchronize(stream_);
    graphs_.close();
    for (uint8_t* const memory : freed_) f.cuMemFree_v2(address(memory));
    if (module_) f.cuModuleUnload(module_);
    if (stream_) f.cuStreamDestroy_v2(stream_);
    f.cuCtxPopCurrent_v2(&context_);
  }
  f.cuDevicePrimaryCtxRelease_v2(gpu_.handle);
}

// Throws an Error for an error of the driver. After any error except a lack of memory, the context is unusable.
void Device::check(api::Result result, const char* doing, size_t bytes) {
  if (result == api::kSuccess) return;
  if (result == api::kOutOfMemory) {
    size_t free = 0, total = 0;
    if (context_) driver_.functions.cuMemGetInfo_v2(&free, &total);
    fail(ErrorCode::kMemory, gpu_.name, " has ", free, " of ", total, " bytes of memory free, and ",
         bytes > 0 ? std::to_string(bytes) : "more", " are needed for ", doing,
         "; use a smaller max_context or weights of fewer bits, or end other programs on the GPU");
  }
  lost_ = gpu_.name + " failed while " + doing + " (" + driver_.error_name(result) +
          "); no model of this process can use it any more: start the program again";
  fail(ErrorCode::kDevice, lost_);
}

Device::Memory Device::memory() {
  const Use use(*this);
  size_t free = 0, total = 0;
  check(driver_.functions.cuMemGetInfo_v2(&free, &total), "querying its free memory");
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

uint8_t* Device::allocate(size_t bytes) {
  const Use use(*this);
  const api::Functions& f = driver_.functions;
  api::Address memory = 0;
  check(f.cuMemAlloc_v2(&memory, std::max<size_t>(bytes, 1)), "an allocation", bytes);
  const api::Result result = f.cuMemsetD8Async(memory, 0, bytes, stream_);
  if (result != api::kSuccess) f.cuMemFree_v2(memory);
  check(result, "clearing memory");
  idle_ = false;
  return reinterpret_cast<uint8_t*>(memory);
}

// Recorded launches may use the memory, so it is freed after they have been launched.
void Device::free(uint8_t* memory) noexcept {
  try {
    const Use use(*this);
    if (!list_.launches().empty()) return freed_.push_back(memory);
    driver_.functions.cuMemFree_v2(address(memory));  // waits for the GPU
  } catch (const Error&) {  // the memory is gone already, with the GPU or in the parent of this process
  }
}

void* Device::allocate_pinned(size_t bytes) {
  const Use use(*this);
  void* memory = nullptr;
  check(driver_.functions.cuMemHostAlloc(&memory, bytes, 0), "pinned memory of the host", bytes);
  return memory;
}

void Device::free_pinned(void* memory) noexcept {
  try {
    const Use use(*this);
    wait();
    driver_.functions.cuMemFreeHost(memory);
  } catch (const Error&) {
  }
}

void Device::upload(const void* host, size_t bytes, void* memory) {
  if (bytes == 0) return;
  const Use use(*this);
  flush();
  check(driver_.functions.cuMemcpyHtoDAsync_v2(address(memory), host, bytes, stream_), "copying data to the GPU");
  wait();
}

void Device::download(const void* memory, size_t bytes, void* host) {
  if (bytes == 0) return;
  const Use use(*this);
  flush();
  check(driver_.functions.cuMemcpyDtoHAsync_v2(host, address(memory), bytes, stream_), "copying data from the GPU");
  wait();
}

void Device::synchronize() {
  const Use use(*this);
  wait();
}

bool Device::idle() {
  const Use use(*this);
  return idle_;
}

void Device::record(bool recording) {
  const Use use(*this);
  flush();
  recording_ = recording;
  segment_ = 0;
}

void Device::send(const Upload& upload) {
  idle_ = false;
  check(driver_.functions.cuMemcpyHtoDAsync_v2(address(upload.memory), upload.host, upload.bytes, stream_),
        "copying arguments of kernels to the GPU");
}

// Arrays that lie close together are sent as one copy, with the few unused bytes between them.
void Device::enqueue_upload(const void* host, size_t bytes, void* memory) {
  const Use use(*this);
  const Upload next = {static_cast<const uint8_t*>(host), static_cast<uint8_t*>(memory), bytes};
  if (!recording_) return send(next);
  if (!uploads_.empty()) {
    Upload& last = uploads_.back();
    const uint8_t* const end = last.host + last.bytes;
    if (next.host >= end && next.host - end < static_cast<ptrdiff_t>(kNearBytes) &&
        next.host - last.host == next.memory - last.memory) {
      last.bytes = static_cast<size_t>(next.host - last.host) + bytes;
      return;
    }
  }
  uploads_.push_back(next);
}

void Device::launch(Kernel kernel, const Grid& grid, int threads, int64_t shared_bytes, const void* args) {
  const Use use(*this);
  if (recording_) return list_.add(kernel, grid, threads, shared_bytes, args);
  idle_ = false;
  check(
      graphs_.launch(kernel, grid, static_cast<unsigned>(threads), static_cast<unsigned>(shared_bytes), args, stream_),
      "launching a kernel");
}

// Launches what was recorded. If that fails, the record is dropped and not tried again.
void Device::flush() {
  const std::vector<Upload> uploads = std::move(uploads_);
  LaunchList list = std::move(list_);
  uploads_.clear();
  list_.clear();
  for (const Upload& upload : uploads) send(upload);
  if (list.launches().empty()) return;
  idle_ = false;
  const api::Result result = graphs_.run(list, segment_++, stream_);
  for (uint8_t* const memory : std::exchange(freed_, {})) driver_.functions.cuMemFree_v2(address(memory));
  check(result, "launching kernels");
}

void Device::wait() {
  flush();
  if (idle_) return;
  check(driver_.functions.cuStreamSynchronize(stream_), "computing");
  idle_ = true;
}

}  // namespace gemlet::cuda
