// The kernels in the form that the driver loads, compiled for every kind of GPU.
#pragma once

namespace gemlet::cuda {

extern "C" const unsigned char gemlet_cuda_image[];

}  // namespace gemlet::cuda
