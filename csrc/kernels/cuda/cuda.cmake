# The CUDA backend. GEMLET_CUDA selects how the backend is built:
#
#   off        device="cuda" raises an error, which says that this build has no CUDA. on         GEMLET_NVCC compiles
#   the kernels, and they become part of the library. No library of CUDA is linked: the
#              driver is opened when it is needed.
#   emulated   The kernels are compiled as C++ into a library that stands in for the driver, and run on the CPU
#              (kernels/cuda/emulated/driver.cpp).
set(GEMLET_CUDA_KERNELS kernels/cuda/attention.cu kernels/cuda/matmul.cu kernels/cuda/rowwise.cu kernels/cuda/towers.cu)

function(gemlet_add_cuda_sources target)
  if(GEMLET_CUDA STREQUAL "off")
    target_sources(${target} PRIVATE backend/no_cuda.cpp)
    return()
  endif()
  target_sources(${target} PRIVATE backend/cuda/cuda_backend.cpp backend/cuda/cuda_towers.cpp backend/cuda/device.cpp
    backend/cuda/driver.cpp backend/cuda/graphs.cpp backend/cuda/image.cpp backend/cuda/parameters.cpp)
  target_link_libraries(${target} PUBLIC ${CMAKE_DL_LIBS})
  if(GEMLET_CUDA STREQUAL "on")
    gemlet_compile_kernels(${target})
  elseif(GEMLET_CUDA STREQUAL "emulated")
    gemlet_emulate_driver(${target})
  else()
    message(FATAL_ERROR "GEMLET_CUDA is '${GEMLET_CUDA}', expected off, on or emulated")
  endif()
endfunction()

# Code for each kind of GPU since sm_80, and PTX, which the driver compiles for later kinds.
function(gemlet_compile_kernels target)
  find_program(GEMLET_NVCC nvcc DOC "The compiler of CUDA 13")
  if(NOT GEMLET_NVCC)
    message(FATAL_ERROR "GEMLET_CUDA=on needs the compiler of CUDA; GEMLET_NVCC says where it is")
  endif()
  set(image ${CMAKE_CURRENT_BINARY_DIR}/kernels.fatbin)
  set(kinds)
  foreach(kind 80 86 89 90a 100a 120)
    list(APPEND kinds -gencode arch=compute_${kind},code=sm_${kind})
  endforeach()
  file(GLOB headers CONFIGURE_DEPENDS kernels/cuda/*.h)
  add_custom_command(OUTPUT ${image}
    COMMAND ${GEMLET_NVCC} -fatbin -std=c++20 -O3 --expt-relaxed-constexpr -Werror all-warnings --compress-mode=size
      ${kinds} -gencode arch=compute_80,code=compute_80 --threads 0
      -I ${CMAKE_CURRENT_SOURCE_DIR} -o ${image} ${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda/all.cu
    DEPENDS ${GEMLET_CUDA_KERNELS} ${headers} kernels/cuda/all.cu formats/formats.h formats/layout.h VERBATIM)
  set_source_files_properties(backend/cuda/image.cpp PROPERTIES OBJECT_DEPENDS ${image}
    COMPILE_DEFINITIONS "GEMLET_CUDA_IMAGE=\"${image}\"")
endfunction()

function(gemlet_emulate_driver target)
  set_source_files_properties(${GEMLET_CUDA_KERNELS} PROPERTIES LANGUAGE CXX)
  add_library(gemlet_emulated_cuda MODULE ${GEMLET_CUDA_KERNELS} kernels/cuda/emulated/cuda.cpp
    kernels/cuda/emulated/driver.cpp base/error.cpp)
  target_include_directories(gemlet_emulated_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_compile_options(gemlet_emulated_cuda PRIVATE $<$<CONFIG:Release>:-O3> -ffp-contract=off)
  target_link_libraries(gemlet_emulated_cuda PRIVATE Threads::Threads)
  # A name that is missing stops the build. Otherwise the library would not open, as if the machine had no driver.
  target_link_options(gemlet_emulated_cuda PRIVATE $<$<NOT:$<BOOL:${GEMLET_SANITIZE}>>:-Wl,--no-undefined>)
  add_dependencies(${target} gemlet_emulated_cuda)
  set_source_files_properties(backend/cuda/driver.cpp PROPERTIES
    COMPILE_DEFINITIONS "GEMLET_EMULATED_LIBCUDA=\"$<TARGET_FILE:gemlet_emulated_cuda>\"")
endfunction()
