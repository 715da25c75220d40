#include "base/cpu_limits.h"

#ifdef __linux__
#include <malloc.h>
#endif
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>

namespace gemlet {
namespace {

// The whole file; empty if there is none. The kernel's files report a size of 0.
std::string read_text(const std::string& path) {
  std::string text;
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return text;
  char block[4096];
  ssize_t count;
  while ((count = read(descriptor, block, sizeof block)) > 0 || (count < 0 && errno == EINTR)) {
    if (count > 0) text.append(block, static_cast<size_t>(count));
  }
  close(descriptor);
  return text;
}

std::string read_line(const std::string& path) {
  const std::string text = read_text(path);
  return text.substr(0, text.find('\n'));
}

// Calls visit(part) for each part of the text between separators.
template <typename Visit>
void for_each_part(const std::string& text, char separator, const Visit& visit) {
  for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
    end = std::min(text.find(separator, begin), text.size());
    visit(text.substr(begin, end - begin));
  }
}

// The number after `key` in lines of "key number"; `otherwise` if there is none.
int64_t number_of(const std::string& text, std::string_view key, int64_t otherwise) {
  for_each_part(text, '\n', [&](const std::string& line) {
    if (line.starts_with(key) && line.size() > key.size() && line[key.size()] == ' ') {
      otherwise = std::atoll(line.c_str() + key.size());
    }
  });
  return otherwise;
}

// CPUs that one cgroup directory grants; 0 if it sets no quota. Version 2 writes "quota period" into cpu.max, version 1
// has a file for each.
double quota_of(const std::string& directory) {
  double quota = 0, period = 0;
  const std::string v2 = read_line(directory + "/cpu.max");
  if (std::sscanf(v2.c_str(), "%lf %lf", &quota, &period) == 2 && period > 0) return quota / period;
  const double v1_quota = std::atof(read_line(directory + "/cpu.cfs_quota_us").c_str());
  const double v1_period = std::atof(read_line(directory + "/cpu.cfs_period_us").c_str());
  return v1_quota > 0 && v1_period > 0 ? v1_quota / v1_period : 0;
}

// Calls visit(directory) for this process's cgroup of `controller` and for all cgroups above it.
template <typename Visit>
void for_each_cgroup(const std::string& files, const std::string& controller, const Visit& visit) {
  // Lines "hierarchy:controllers:path"; version 2 names no controllers.
  for_each_part(read_text(files + "/proc/self/cgroup"), '\n', [&](const std::string& line) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) return;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    std::string root = files + "/sys/fs/cgroup";
    if (!controllers.empty()) {
      if (("," + controllers + ",").find("," + controller + ",") == std::string::npos) return;
      root += "/" + controller;
    }
    while (path.size() > 1 && path.front() == '/') {
      visit(root + path);
      path.resize(path.rfind('/'));
    }
    visit(root);
  });
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
  long long bytes = 0;
  return std::sscanf(read_line(path).c_str(), "%lld", &bytes) == 1 ? bytes : otherwise;
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
  for_each_part(list, ',', [&](const std::string& range) {
    int first = 0, last = 0;
    const int numbers = std::sscanf(range.c_str(), "%d-%d", &first, &last);
    if (numbers < 1 || first < 0) return;
    if (numbers == 1) last = first;
    for (int node = first; node <= last && node < 64; ++node) nodes |= uint64_t{1} << node;
  });
  return nodes;
}

uint64_t memory_nodes() { return parse_nodes(read_line("/sys/devices/system/node/has_memory")); }

void return_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

int64_t available_memory(const std::string& files) {
  const int64_t kilobytes = number_of(read_text(files + "/proc/meminfo"), "MemAvailable:", -1);
  int64_t available = kilobytes < 0 ? INT64_MAX : kilobytes * 1024;
  for_each_cgroup(files, "memory", [&](const std::string& directory) {
    const int64_t limit = std::min(read_bytes(directory + "/memory.max", INT64_MAX),
                                   read_bytes(directory + "/memory.limit_in_bytes", INT64_MAX));
    if (limit == INT64_MAX) return;
    // The memory that processes use. The page cache does not count, because it is freed when memory is needed.
    const std::string stat = read_text(directory + "/memory.stat");
    const int64_t used = number_of(stat, "total_rss", number_of(stat, "anon", 0));
    available = std::min(available, std::max<int64_t>(0, limit - used));
  });
  return available;
}

ThreadChoice default_threads(const CpuLimits& limits) {
  int threads = std::min(limits.affinity, limits.physical_cores);
  if (limits.cgroup_quota > 0) threads = std::min(threads, limits.cgroup_quota);
  const std::string quota = limits.cgroup_quota > 0 ? std::to_string(limits.cgroup_quota) : "none";
  return {std::max(1, threads), "min(affinity " + std::to_string(limits.affinity) + ", cgroup quota " + quota +
                                    ", physical cores " + std::to_string(limits.physical_cores) + ")"};
}

}  // namespace gemlet
