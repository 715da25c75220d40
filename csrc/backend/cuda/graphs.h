// Lists of recorded launches, and CUDA graphs made from them. Launching a graph costs the host as much time as
// launching one kernel.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "kernels/cuda/driver_api.h"
#include "kernels/cuda/kernels.h"

namespace gemlet::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
  bool operator==(const Grid&) const = default;
};

class LaunchList {
 public:
  struct Launch {
    Kernel kernel;
    Grid grid;
    unsigned threads, shared_bytes;
    size_t args;  // offset of the arguments in the list's bytes
  };
  void add(Kernel kernel, const Grid& grid, int threads, int64_t shared_bytes, const void* args);
  void clear();
  const std::vector<Launch>& launches() const { return launches_; }
  void* args(size_t index) { return bytes_.data() + launches_[index].args; }
  bool same_kernels(const LaunchList& other) const;
  bool same_launch(const LaunchList& other, size_t index) const;

 private:
  std::vector<Launch> launches_;
  std::vector<uint8_t> bytes_;
};

// Graphs of earlier lists. A pass launches the same kernels as the previous pass, in the same order and with nearly the
// same arguments. So an earlier graph is used again, and only the launches whose arguments differ are changed in it.
class Graphs {
 public:
  void open(const api::Functions& functions, std::vector<api::Function> kernels);
  void close() noexcept;
  // Launches all of `list`, which is part `segment` of a pass. The first time that a list of these kernels comes, it is
  // launched without a graph.
  api::Result run(LaunchList& list, size_t segment, api::Stream stream);
  api::Result launch(Kernel kernel, const Grid& grid, unsigned threads, unsigned shared_bytes, const void* args,
                     api::Stream stream) const;

 private:
  struct Entry {
    size_t segment;
    LaunchList list;
    api::Graph graph = nullptr;
    api::Executable executable = nullptr;
    std::vector<api::Node> nodes;
  };
  api::KernelNode node_of(const LaunchList::Launch& launch, void** params) const;
  api::Result build(Entry& entry) const;
  api::Result update(Entry& entry, LaunchList& list) const;
  void drop(Entry& entry) const noexcept;

  api::Functions functions_;
  std::vector<api::Function> kernels_;
  std::list<Entry> entries_;  // the last used one first
};

}  // namespace gemlet::cuda
