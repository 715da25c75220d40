# What a build needs of the machine. What is missing is said in one line, with the command that installs it. A line that
# begins with a space is not wrapped.

function(gemlet_needs what debian fedora)
  message(FATAL_ERROR
    " gemlet needs ${what}. Debian, Ubuntu: sudo apt install ${debian}   Fedora: sudo dnf install ${fedora}")
endfunction()

set(GEMLET_CXX "a C++20 compiler (g++ 11, clang 14 or newer)")

include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  if(DEFINED ENV{CXX})
    gemlet_needs("${GEMLET_CXX}, and CXX=$ENV{CXX} does not work" "g++" "gcc-c++")
  endif()
  gemlet_needs("${GEMLET_CXX}, and found none that works" "g++" "gcc-c++")
endif()
enable_language(CXX)
if((CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 11) OR
   (CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14))
  gemlet_needs("${GEMLET_CXX}, and found ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}" "g++-12" "gcc-c++")
endif()

# A compiler may be there without the headers of the C++ library, or with old ones.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
include(CheckCXXSourceCompiles)
check_cxx_source_compiles("
  #include <bit>
  #include <concepts>
  #include <span>
  #include <vector>
  template <std::integral T> int count(std::span<const T> x) { return static_cast<int>(x.size()); }
  int main() { std::vector<int> x(3); return count<int>(x) - static_cast<int>(std::bit_cast<unsigned>(3)); }"
  GEMLET_HAS_CXX20)
if(NOT GEMLET_HAS_CXX20)
  gemlet_needs("the headers of a C++20 library, which ${CMAKE_CXX_COMPILER} lacks" "g++" "gcc-c++")
endif()

function(gemlet_require_python_headers)
  find_package(Python 3.10 COMPONENTS Interpreter Development.Module QUIET)
  if(NOT Python_Interpreter_FOUND)
    gemlet_needs("Python 3.10 or newer, and found ${Python_VERSION}" "python3" "python3")
  endif()
  if(NOT Python_Development.Module_FOUND)
    gemlet_needs("the headers of Python ${Python_VERSION} (Python.h)" "python3-dev" "python3-devel")
  endif()
endfunction()
