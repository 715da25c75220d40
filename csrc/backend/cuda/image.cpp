#include "backend/cuda/image.h"

#ifdef GEMLET_CUDA_IMAGE
__asm__(
    ".section .rodata\n"
    ".balign 16\n"
    ".globl gemlet_cuda_image\n"
    ".hidden gemlet_cuda_image\n"
    "gemlet_cuda_image:\n"
    ".incbin \"" GEMLET_CUDA_IMAGE
    "\"\n"
    ".previous\n");
#else
extern "C" const unsigned char gemlet_cuda_image[] = "emulated";  // the driver of an emulated build has the kernels
#endif
