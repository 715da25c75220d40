// How many threads and how much memory this process may really use.
#pragma once

#include <cstdint>
#include <string>

namespace gemlet {

struct CpuLimits {
  int affinity = 1;        // CPUs in the process's affinity mask
  int cgroup_quota = 0;    // CPUs that the cgroup's quota pays for, rounded up; 0 = no quota
  int physical_cores = 1;  // distinct cores among the CPUs of the affinity mask
};

// What the system says below `files`: nothing but in tests.
CpuLimits detect_cpu_limits(const std::string& files = "");

struct ThreadChoice {
  int threads;
  std::string reason;
};

// min(affinity, quota, physical cores), and which of the three decided.
ThreadChoice default_threads(const CpuLimits& limits);

// Which of the first 64 NUMA nodes have memory, as bits; and the reading of lists like "0-1,4" that says so.
uint64_t memory_nodes();
uint64_t parse_nodes(const std::string& list);

// Bytes of memory that this process may still take: the machine's available memory and the room under the cgroup's
// limit, whichever is less.
int64_t available_memory(const std::string& files = "");

// Gives the system back what malloc keeps of freed memory, where malloc can.
void return_free_memory();

}  // namespace gemlet
