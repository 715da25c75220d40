# The CUDA backend, as GEMLET_CUDA says.
#
#   off        device="cuda" is an error that says so.
#   emulated   The kernels are compiled as C++, and run on the CPU (kernels/cuda/emulated/cuda.h).
function(gemlet_add_cuda_sources target)
  if(GEMLET_CUDA STREQUAL "off")
    target_sources(${target} PRIVATE backend/no_cuda.cpp)
    return()
  elseif(NOT GEMLET_CUDA STREQUAL "emulated")
    message(FATAL_ERROR "GEMLET_CUDA is '${GEMLET_CUDA}', expected off or emulated")
  endif()
  set(kernels kernels/cuda/attention.cu kernels/cuda/matmul.cu kernels/cuda/rowwise.cu kernels/cuda/towers.cu)
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  target_sources(${target} PRIVATE ${kernels} kernels/cuda/emulated/cuda.cpp backend/cuda/cuda_backend.cpp
    backend/cuda/cuda_towers.cpp backend/cuda/parameters.cpp backend/cuda/emulated_device.cpp)
endfunction()
