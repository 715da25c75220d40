// CUDA's driver, which is opened when it is first needed. Nothing links to it.
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
  std::string refusal;  // why it is not used; empty: it can be
};

// The driver and the GPUs of this machine. In a forked process whose parent had opened the driver, the driver does not
// work, and `refusal` says so.
struct Driver {
  api::Functions functions;
  int version = 0;  // the version of CUDA: 13000 for 13.0; 0: there is no driver
  std::vector<Gpu> gpus;
  std::string refusal;  // why no GPU can be used; empty: one can be
  std::string error_name(api::Result error) const;
};
Driver find_driver();

}  // namespace gemlet::cuda
