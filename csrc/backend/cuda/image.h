// The image of the compiled kernels, which the driver loads. It has code for every kind of GPU.
#pragma once

namespace gemlet::cuda {

extern "C" const unsigned char gemlet_cuda_image[];

}  // namespace gemlet::cuda
