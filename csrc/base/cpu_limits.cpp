#include "base/cpu_limits.h"

#ifdef __linux__
#include <malloc.h>
#endif
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace gemlet {
namespace {

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (file) std::getline(file, line);
  return line;
}

// CPUs that one cgroup directory grants; 0 if it sets no quota. Version 2 writes "quota period" into cpu.max, version 1
// has a file for each.
double quota_of(const std::string& directory) {
  std::istringstream v2(read_line(directory + "/cpu.max"));
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::atof(quota.c_str()) / period;
  const double v1_quota = std::atof(read_line(directory + "/cpu.cfs_quota_us").c_str());
  const double v1_period = std::atof(read_line(directory + "/cpu.cfs_period_us").c_str());
  return v1_quota > 0 && v1_period > 0 ? v1_quota / v1_period : 0;
}

// Calls visit(directory) for this process's cgroup of `controller` and for all cgroups above it.
template <typename Visit>
void for_each_cgroup(const std::string& files, const std::string& controller, const Visit& visit) {
  // Lines "hierarchy:controllers:path"; version 2 names no controllers.
  std::ifstream self(files + "/proc/self/cgroup");
  std::string line;
  while (std::getline(self, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    std::string root = files + "/sys/fs/cgroup";
    if (!controllers.empty()) {
      if (("," + controllers + ",").find("," + controller + ",") == std::string::npos) continue;
      root += "/" + controller;
    }
    while (path.size() > 1) {
      visit(root + path);
      path.resize(path.rfind('/'));
    }
    visit(root);
  }
}

int cgroup_quota(const std::string& files) {
  double tightest = 0;
  for_each_cgroup(files, "cpu", [&](const std::string& directory) {
    const double cpus = quota_of(directory);
    if (cpus > 0 && (tightest == 0 || cpus < tightest)) tightest = cpus;
  });
  return tightest > 0 ? std::max(1, static_cast<int>(std::ceil(tightest - 1e-6))) : 0;
}

// The number of bytes that a file holds; `otherwise` if it says "max" or does not exist.
int64_t read_bytes(const std::string& path, int64_t otherwise) {
  std::istringstream line(read_line(path));
  int64_t bytes = 0;
  return line >> bytes ? bytes : otherwise;
}

}  // namespace

CpuLimits detect_cpu_limits(const std::string& files) {
  CpuLimits limits;
  limits.cgroup_quota = cgroup_quota(files);
  std::set<std::pair<std::string, std::string>> cores;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    limits.affinity = std::max(1, CPU_COUNT(&mask));
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &mask)) continue;
      const std::string topology = files + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      std::string core = read_line(topology + "core_id");
      if (core.empty()) core = "cpu" + std::to_string(cpu);  // no topology: this CPU counts as a core of its own
      cores.emplace(read_line(topology + "physical_package_id"), core);
    }
  } else {  // there are more CPUs than cpu_set_t holds
    limits.affinity = std::max<int>(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  }
  limits.physical_cores = cores.empty() ? limits.affinity : static_cast<int>(cores.size());
  return limits;
}

uint64_t parse_nodes(const std::string& list) {
  uint64_t nodes = 0;
  std::istringstream ranges(list);
  std::string range;
  while (std::getline(ranges, range, ',')) {
    int first = 0, last = 0;
    const int numbers = std::sscanf(range.c_str(), "%d-%d", &first, &last);
    if (numbers < 1 || first < 0) continue;
    if (numbers == 1) last = first;
    for (int node = first; node <= last && node < 64; ++node) nodes |= uint64_t{1} << node;
  }
  return nodes;
}

uint64_t memory_nodes() { return parse_nodes(read_line("/sys/devices/system/node/has_memory")); }

void return_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

int64_t available_memory(const std::string& files) {
  int64_t available = INT64_MAX;
  std::ifstream meminfo(files + "/proc/meminfo");
  std::string key;
  int64_t kilobytes = 0;
  std::string unit;
  while (meminfo >> key >> kilobytes >> unit) {
    if (key != "MemAvailable:") continue;
    available = kilobytes * 1024;
    break;
  }
  for_each_cgroup(files, "memory", [&](const std::string& directory) {
    const int64_t limit = std::min(read_bytes(directory + "/memory.max", INT64_MAX),
                                   read_bytes(directory + "/memory.limit_in_bytes", INT64_MAX));
    if (limit == INT64_MAX) return;
    std::ifstream stat(directory + "/memory.stat");
    int64_t bytes = 0,
            used = 0;  // what processes use; the page cache does not count, as it is freed when memory is needed
    while (stat >> key >> bytes) {
      if (key == "anon" || key == "total_rss") used = bytes;
    }
    available = std::min(available, std::max<int64_t>(0, limit - used));
  });
  return available;
}

ThreadChoice default_threads(const CpuLimits& limits) {
  int threads = std::min(limits.affinity, limits.physical_cores);
  if (limits.cgroup_quota > 0) threads = std::min(threads, limits.cgroup_quota);
  std::ostringstream reason;
  reason << "min(affinity " << limits.affinity << ", cgroup quota ";
  if (limits.cgroup_quota > 0) {
    reason << limits.cgroup_quota;
  } else {
    reason << "none";
  }
  reason << ", physical cores " << limits.physical_cores << ")";
  return {std::max(1, threads), reason.str()};
}

}  // namespace gemlet
