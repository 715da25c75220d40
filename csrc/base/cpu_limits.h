// The number of threads and the memory that this process may use.
#pragma once

#include <cstdint>
#include <string>

namespace gemlet {

struct CpuLimits {
  int affinity = 1;        // CPUs in the process's affinity mask
  int cgroup_quota = 0;    // CPUs that the cgroup's quota allows, rounded up; 0: no quota
  int physical_cores = 1;  // different cores among the CPUs of the affinity mask
};

// Reads /proc and /sys. Tests pass a folder `files` that contains copies of both.
CpuLimits detect_cpu_limits(const std::string& files = "");

struct ThreadChoice {
  int threads;
  std::string reason;
};

// The minimum of affinity, quota and physical cores. The reason is a message that names all three.
ThreadChoice default_threads(const CpuLimits& limits);

// One bit for each of the first 64 NUMA nodes, set if the node has memory. parse_nodes() reads lists like "0-1,4".
uint64_t memory_nodes();
uint64_t parse_nodes(const std::string& list);

// Bytes of memory that this process may still allocate: the machine's available memory, or the rest of the cgroup's
// limit if that is less.
int64_t available_memory(const std::string& files = "");

// Gives freed memory that malloc still holds back to the system, if this malloc can do that.
void return_free_memory();

}  // namespace gemlet
