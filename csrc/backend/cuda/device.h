// A GPU as the backend sees it: memory, copies in the order of one stream, and launches.
//
// In a pass over few rows, launches are recorded until something waits for their results. Then one copy sends the small
// arrays that the launches read, and the launches go to the GPU as a graph (graphs.h). In other passes, each launch
// goes to the stream at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "backend/cuda/driver.h"
#include "backend/cuda/graphs.h"
#include "kernels/cuda/kernels.h"

namespace gemlet::cuda {

// All functions may be called from any thread. They throw kMemory if the GPU has no memory left, kDevice if the GPU
// failed, and kUnsupported in a forked process, which cannot use the GPU.
class Device {
 public:
  Device();  // opens the first GPU that can be used; throws kUnsupported if there is none
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  struct Memory {
    int64_t free, total;
  };
  Memory memory();

  // Memory is filled with zeros and aligned to 256 bytes.
  uint8_t* allocate(size_t bytes);
  void free(uint8_t* memory) noexcept;

  // When the call returns, the copy and everything that was launched before it are complete.
  void upload(const void* host, size_t bytes, void* memory);
  void download(const void* memory, size_t bytes, void* host);
  void synchronize();

  // The next two functions only add work to the stream and do not wait. `host` is pinned memory, whose content must not
  // change until synchronize().
  void enqueue_upload(const void* host, size_t bytes, void* memory);
  // The call copies `args`.
  void launch(Kernel kernel, const Grid& grid, int threads, int64_t shared_bytes, const void* args);

  // Sets whether later launches are recorded.
  void record(bool recording);
  // Whether the GPU has finished all its work.
  bool idle();

  // Pinned memory of the host, which the GPU can read while the host continues.
  void* allocate_pinned(size_t bytes);
  void free_pinned(void* memory) noexcept;

 private:
  class Use;
  struct Upload {
    const uint8_t* host;
    uint8_t* memory;
    size_t bytes;
  };
  void check(api::Result result, const char* doing, size_t bytes = 0);
  void close() noexcept;
  void send(const Upload& upload);
  void flush();
  void wait();

  Driver driver_;
  Gpu gpu_;
  uint32_t generation_;
  std::mutex mutex_;
  std::string lost_;  // the message of the GPU's failure; empty: it has not failed
  api::Context context_ = nullptr;
  api::Stream stream_ = nullptr;
  api::Module module_ = nullptr;
  Graphs graphs_;
  bool recording_ = false, idle_ = true;
  size_t segment_ = 0;  // the number of parts of this pass that have already been launched
  LaunchList list_;
  std::vector<Upload> uploads_;
  std::vector<uint8_t*> freed_;  // memory to free once the list has been launched
};

}  // namespace gemlet::cuda
