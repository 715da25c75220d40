// CUDA's driver, which is opened at its first use. No file links to it.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/driver_api.h"

namespace gemlet::cuda {

struct Gpu {
  api::Gpu handle;
  std::string name;
  int capability;       // 80 for 8.0
  int64_t memory;       // bytes
  std::string refusal;  // the reason why the GPU cannot be used; empty if it can be used
};

// The driver and the GPUs of this machine. In a forked process whose parent had opened the driver, the driver does not
// work, and `refusal` says so.
struct Driver {
  api::Functions functions;
  int version = 0;  // the CUDA version, 13000 for 13.0; 0 if there is no driver
  std::vector<Gpu> gpus;
  std::string refusal;  // the reason why no GPU can be used; empty if one can be used
  std::string error_name(api::Result error) const;
};
Driver find_driver();

}  // namespace gemlet::cuda
