# The map from instruction-set tiers to compiler flags. Only the files named here get these flags, so no other code can
# contain an instruction that the machine lacks.

set(GEMLET_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(GEMLET_ISA_FLAGS_avxvnni ${GEMLET_ISA_FLAGS_avx2} -mavxvnni)
if(GEMLET_EMULATE_AVXVNNI)
  list(REMOVE_ITEM GEMLET_ISA_FLAGS_avxvnni -mavxvnni)
  list(APPEND GEMLET_ISA_FLAGS_avxvnni -DGEMLET_EMULATE_AVXVNNI)
endif()
set(GEMLET_ISA_FLAGS_avx512 ${GEMLET_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
set(GEMLET_ISA_FLAGS_avx512vnni ${GEMLET_ISA_FLAGS_avx512} -mavx512vnni)
set(GEMLET_ISA_FLAGS_avx512bf16 ${GEMLET_ISA_FLAGS_avx512vnni} -mavx512bf16)
set(GEMLET_ISA_FLAGS_amx ${GEMLET_ISA_FLAGS_avx512bf16})  # the AMX instructions themselves are inline assembly
# gcc's arm_neon.h needs armv8.2-a. Every processor with these extensions has it.
set(GEMLET_ISA_FLAGS_neon -march=armv8-a)
set(GEMLET_ISA_FLAGS_dotprod -march=armv8.2-a+dotprod)
set(GEMLET_ISA_FLAGS_i8mm -march=armv8.2-a+dotprod+i8mm)

function(gemlet_add_isa_sources target)
  set(extra)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(tiers avx2 avxvnni avx512 avx512vnni avx512bf16)
    include(CheckCXXSourceCompiles)
    check_cxx_source_compiles("int main() { __asm__ volatile(\"tdpbf16ps %tmm2, %tmm1, %tmm0\"); }" GEMLET_HAS_AMX)
    if(GEMLET_HAS_AMX)
      list(APPEND tiers amx)
    else()
      target_compile_definitions(${target} PUBLIC GEMLET_NO_AMX)
    endif()
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    set(tiers neon dotprod i8mm)
    # If gcc schedules instructions before it allocates registers, the sums of a tile no longer fit the registers.
    set(extra $<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns>)
  else()
    set(tiers)
  endif()
  foreach(tier IN LISTS tiers)
    # -ffp-contract=fast makes one FMA of a * b + c. -fno-exceptions keeps helpers for unwinding out of these objects.
    # Without _FORTIFY_SOURCE and _GLIBCXX_ASSERTIONS there are no helpers for checks. With -fno-function-sections, a
    # linker that sorts functions (.ci/zig/c++) keeps the kernels together.
    set(options ${GEMLET_ISA_FLAGS_${tier}} ${extra} -ffp-contract=fast -fno-exceptions -fno-math-errno
      -fno-trapping-math -fno-function-sections -U_FORTIFY_SOURCE -U_GLIBCXX_ASSERTIONS)
    if(GEMLET_SANITIZED_TIERS AND NOT tier IN_LIST GEMLET_SANITIZED_TIERS)
      list(APPEND options -fno-sanitize=all -O0)
    endif()
    foreach(operation matmul attention rowwise peak)
      set(source ${CMAKE_CURRENT_SOURCE_DIR}/kernels/${operation}/${tier}.cpp)
      if(NOT EXISTS ${source})  # the tier has no kernel of its own for this operation
        continue()
      endif()
      target_sources(${target} PRIVATE ${source})
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${options}")
    endforeach()
  endforeach()
  if(GEMLET_EMULATE_AVXVNNI)
    target_compile_definitions(${target} PUBLIC GEMLET_EMULATE_AVXVNNI)
  endif()
  if(GEMLET_EMULATE_AMX)  # these files are plain C++ and need no flags
    set(emulated kernels/matmul/amx_emulated.cpp kernels/attention/amx_emulated.cpp kernels/peak/amx_emulated.cpp)
    target_sources(${target} PRIVATE ${emulated})
    set_source_files_properties(${emulated} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    target_compile_definitions(${target} PUBLIC GEMLET_EMULATE_AMX)
  endif()
endfunction()
