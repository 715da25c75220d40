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

// Reads /proc and /sys. Tests keep these folders elsewhere, in `files`.
CpuLimits detect_cpu_limits(const std::string& files = "");

struct ThreadChoice {
  int threads;
  std::string reason;
};

// min(affinity, quota, physical cores), and a text that names the three.
ThreadChoice default_threads(const CpuLimits& limits);

// A bit for each of the first 64 NUMA nodes that has memory. parse_nodes() reads the system's lists, like "0-1,4".
uint64_t memory_nodes();
uint64_t parse_nodes(const std::string& list);

// Bytes of memory that this process may still take: the machine's available memory, or what the cgroup's limit leaves
// if that is less.
int64_t available_memory(const std::string& files = "");

// Returns freed memory that malloc still holds to the system, if this malloc can.
void return_free_memory();

}  // namespace gemlet
