#include "base/cpu_limits.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
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

// CPUs granted by one cgroup directory; 0 if it sets no quota. Version 2 has "quota period" in cpu.max, version 1 two files.
double quota_of(const std::string& directory) {
  std::istringstream v2(read_line(directory + "/cpu.max"));
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::atof(quota.c_str()) / period;
  const double v1_quota = std::atof(read_line(directory + "/cpu.cfs_quota_us").c_str());
  const double v1_period = std::atof(read_line(directory + "/cpu.cfs_period_us").c_str());
  return v1_quota > 0 && v1_period > 0 ? v1_quota / v1_period : 0;
}

// The tightest quota on the path from this process's cgroup up to the root.
int cgroup_quota() {
  double tightest = 0;
  const auto consider = [&](double cpus) {
    if (cpus > 0 && (tightest == 0 || cpus < tightest)) tightest = cpus;
  };
  std::ifstream self("/proc/self/cgroup");  // lines "hierarchy:controllers:path"
  std::string line;
  while (std::getline(self, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    std::string root = "/sys/fs/cgroup";
    if (!controllers.empty()) {
      if (("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
      root += "/cpu";
    }
    while (path.size() > 1) {
      consider(quota_of(root + path));
      path.resize(path.rfind('/'));
    }
    consider(quota_of(root));
  }
  return tightest > 0 ? std::max(1, static_cast<int>(std::ceil(tightest - 1e-6))) : 0;
}

}  // namespace

CpuLimits detect_cpu_limits() {
  CpuLimits limits;
  limits.cgroup_quota = cgroup_quota();
  std::set<std::pair<std::string, std::string>> cores;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    limits.affinity = std::max(1, CPU_COUNT(&mask));
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &mask)) continue;
      const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      std::string core = read_line(topology + "core_id");
      if (core.empty()) core = "cpu" + std::to_string(cpu);  // no topology: count it as a core of its own
      cores.emplace(read_line(topology + "physical_package_id"), core);
    }
  } else {  // more CPUs than cpu_set_t holds
    limits.affinity = std::max<int>(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  }
  limits.physical_cores = cores.empty() ? limits.affinity : static_cast<int>(cores.size());
  return limits;
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
