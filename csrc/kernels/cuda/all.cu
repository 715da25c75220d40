// All kernels as one unit, which becomes one image for the driver.
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/matmul.cu"
#include "kernels/cuda/rowwise.cu"
#include "kernels/cuda/towers.cu"
