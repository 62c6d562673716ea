# The CUDA backend. DDPM_CUDA is
#   AUTO      ON where nvcc is found, else OFF
#   ON        kernels/ compiled by nvcc: machine code for the GPUs below and PTX for later ones
#   OFF       the CPU backend alone
#   EMULATED  for tests: kernels/ compiled as C++ and run by tests/cuda_on_cpu, which also stands in for the runtime
#
# DDPM_CUDNN is AUTO (ON where cuDNN is found), ON or OFF: convolutions, attention and dense layers by cuDNN's engines where
# they win, else by kernels/ alone. Its folder is the toolkit's, or -DCUDNN_ROOT=FOLDER. EMULATED takes the headers, and
# tests/cuda_on_cpu stands in for the library.
#
# The toolkit is the system's, or the PyPI wheels that cmake/cuda_wheels.sh installs: -DCUDAToolkit_ROOT=FOLDER.
set(DDPM_CUDA AUTO CACHE STRING "AUTO, ON, OFF or EMULATED")
set_property(CACHE DDPM_CUDA PROPERTY STRINGS AUTO ON OFF EMULATED)
set(DDPM_CUDNN AUTO CACHE STRING "AUTO, ON or OFF")
set_property(CACHE DDPM_CUDNN PROPERTY STRINGS AUTO ON OFF)
set(DDPM_CUDA_ARCHITECTURES "80-real;90-real;100-real;120" CACHE STRING "as CMAKE_CUDA_ARCHITECTURES")

find_program(DDPM_NVCC nvcc HINTS ${CUDAToolkit_ROOT}/bin $ENV{CUDA_HOME}/bin PATHS /usr/local/cuda/bin)
set(DDPM_CUDA_MODE ${DDPM_CUDA})
if(DDPM_CUDA STREQUAL "AUTO")
  set(DDPM_CUDA_MODE OFF)
  if(DDPM_NVCC)
    set(DDPM_CUDA_MODE ON)
  endif()
endif()
if(DDPM_CUDA_MODE STREQUAL "OFF")
  message(STATUS "CUDA backend: off")
  return()
endif()

file(GLOB DDPM_KERNELS CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*.cu)
add_library(ddpm_kernels STATIC ${DDPM_KERNELS})
target_include_directories(ddpm_kernels PUBLIC ${PROJECT_SOURCE_DIR}/kernels PRIVATE ${PROJECT_SOURCE_DIR}/include
                           ${PROJECT_SOURCE_DIR}/src/core ${PROJECT_SOURCE_DIR}/src/backend)

if(DDPM_CUDA_MODE STREQUAL "ON")
  if(NOT DDPM_NVCC)
    message(FATAL_ERROR "DDPM_CUDA=ON and no nvcc: install the CUDA toolkit, or run cmake/cuda_wheels.sh")
  endif()
  set(CMAKE_CUDA_COMPILER ${DDPM_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES ${DDPM_CUDA_ARCHITECTURES})
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set_target_properties(ddpm_kernels PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON
                        CUDA_ARCHITECTURES "${DDPM_CUDA_ARCHITECTURES}" POSITION_INDEPENDENT_CODE ON)
  # -fmad=false: formulas.h spells every fused multiply-add, so that host and device round alike.
  target_compile_options(ddpm_kernels PRIVATE -fmad=false -t=0 $<$<BOOL:${DDPM_WERROR}>:-Werror=all-warnings>)
  add_library(ddpm_cuda INTERFACE)
  target_link_libraries(ddpm_cuda INTERFACE ddpm_kernels CUDA::cudart_static)
  set(DDPM_CUDA_INCLUDE ${CUDAToolkit_INCLUDE_DIRS})
else()
  enable_language(CXX)
  find_path(DDPM_CUDA_INCLUDE cuda_runtime_api.h HINTS ${CUDAToolkit_ROOT}/include ENV CUDA_HOME PATHS /usr/local/cuda/include
            PATH_SUFFIXES include)
  if(NOT DDPM_CUDA_INCLUDE)
    message(FATAL_ERROR "DDPM_CUDA=EMULATED and no CUDA headers: install the CUDA toolkit, or run cmake/cuda_wheels.sh")
  endif()
  option(DDPM_RACES "EMULATED: check shared memory for races between barriers" OFF)
  option(DDPM_COVERAGE "EMULATED: count executed lines of kernels/ and the device layer" OFF)
  set(stand_in ${PROJECT_SOURCE_DIR}/tests/cuda_on_cpu)
  file(GLOB stand_in_sources CONFIGURE_DEPENDS ${stand_in}/*.cpp)
  list(FILTER stand_in_sources EXCLUDE REGEX "/test_")
  # Of the libraries the headers are needed too: a runtime package may lack them.
  find_path(CUDNN_INCLUDE cudnn.h HINTS ${CUDNN_ROOT}/include ${CUDAToolkit_ROOT}/cudnn/include ${DDPM_CUDA_INCLUDE})
  if(NOT CUDNN_INCLUDE OR DDPM_CUDNN STREQUAL "OFF")
    list(FILTER stand_in_sources EXCLUDE REGEX "/cudnn_")
  endif()
  if(NOT EXISTS ${DDPM_CUDA_INCLUDE}/cublasLt.h)
    list(FILTER stand_in_sources EXCLUDE REGEX "/cublaslt")
  endif()
  add_library(ddpm_cuda_on_cpu STATIC ${stand_in_sources})
  # No fused multiply-add where the source has none: formulas.h promises the host's and the device's rounding alike.
  # -Wno-uninitialized: gcc -O3 takes what one step of an unrolled loop loads for the next as read before written.
  set(cxx_flags -Wall -Wextra -Wshadow -Wno-unknown-pragmas -Wno-uninitialized -Wno-maybe-uninitialized
      -ffp-contract=off -fno-math-errno -fno-strict-aliasing
      $<$<BOOL:${DDPM_WERROR}>:-Werror>)
  target_include_directories(ddpm_cuda_on_cpu PUBLIC ${stand_in} PRIVATE ${PROJECT_SOURCE_DIR}/kernels
                             ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src/core ${PROJECT_SOURCE_DIR}/src/backend)
  set_source_files_properties(${DDPM_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  foreach(target ddpm_kernels ddpm_cuda_on_cpu)
    set_target_properties(${target} PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
    target_include_directories(${target} SYSTEM PUBLIC ${DDPM_CUDA_INCLUDE} $<$<BOOL:${CUDNN_INCLUDE}>:${CUDNN_INCLUDE}>)
    target_compile_options(${target} PRIVATE ${cxx_flags})
    if(DDPM_SANITIZE) # -O2 takes three times as long to compile, and the tests gain nothing by it
      target_compile_options(${target} PRIVATE -fsanitize=${DDPM_SANITIZE} -fno-omit-frame-pointer -O1 -g1)
      if(DDPM_SANITIZE MATCHES "address") # which sees these two by itself; a third of the time for compiling
        target_compile_options(${target} PRIVATE -fno-sanitize=null,object-size)
      endif()
      if(target STREQUAL "ddpm_cuda_on_cpu") # it is a tool, and half of its time for compiling is this
        target_compile_options(${target} PRIVATE -fno-sanitize=undefined)
      endif()
    endif()
  endforeach()
  set_source_files_properties(${stand_in}/races.cpp PROPERTIES COMPILE_OPTIONS "-fno-sanitize=all;-fno-builtin")
  if(DDPM_RACES) # instrumentation alone: tests/cuda_on_cpu/races.cpp answers for the sanitizer's runtime
    target_compile_options(ddpm_kernels PRIVATE -fsanitize=thread -O1 -g1)
  endif()
  if(DDPM_COVERAGE)
    target_compile_options(ddpm_kernels PRIVATE --coverage)
    target_link_options(ddpm_kernels INTERFACE --coverage)
  endif()
  target_include_directories(ddpm_kernels PRIVATE ${stand_in})
  # The two need each other: launches go to the stand-in, which runs what they enqueue.
  target_link_libraries(ddpm_kernels PUBLIC ddpm_cuda_on_cpu)
  add_library(ddpm_cuda INTERFACE)
  target_link_libraries(ddpm_cuda INTERFACE ddpm_kernels ddpm_cuda_on_cpu stdc++ m)
endif()
message(STATUS "CUDA backend: ${DDPM_CUDA_MODE}")

# ---- cuDNN ----

find_path(CUDNN_INCLUDE cudnn.h HINTS ${CUDNN_ROOT}/include ${CUDAToolkit_ROOT}/cudnn/include ${DDPM_CUDA_INCLUDE})
if(DDPM_CUDA_MODE STREQUAL "EMULATED")
  file(GLOB CUDNN_LIBRARY CONFIGURE_DEPENDS ${stand_in}/cudnn*.cpp)
else()
  find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 PATH_SUFFIXES lib lib64
               HINTS ${CUDNN_ROOT} ${CUDAToolkit_ROOT}/cudnn ${CUDAToolkit_LIBRARY_DIR})
endif()
set(DDPM_CUDNN_MODE OFF)
if(CUDNN_INCLUDE AND CUDNN_LIBRARY AND NOT DDPM_CUDNN STREQUAL "OFF")
  file(STRINGS ${CUDNN_INCLUDE}/cudnn_version.h CUDNN_VERSION_LINES REGEX "define CUDNN_(MAJOR|MINOR|PATCHLEVEL) ")
  string(REGEX REPLACE "[^0-9]+" "." CUDNN_VERSION "${CUDNN_VERSION_LINES}")
  string(REGEX REPLACE "^\\.|\\.$" "" CUDNN_VERSION "${CUDNN_VERSION}")
  if(CUDNN_VERSION VERSION_LESS 9.13) # the first with attention as one operation
    message(STATUS "cuDNN ${CUDNN_VERSION} is older than 9.13: not used")
  elseif(NOT TARGET CUDA::cublasLt AND NOT (DDPM_CUDA_MODE STREQUAL "EMULATED" AND EXISTS ${DDPM_CUDA_INCLUDE}/cublasLt.h))
    message(STATUS "cuDNN ${CUDNN_VERSION} needs cuBLASLt, which is not there: not used")
  else()
    set(DDPM_CUDNN_MODE ON)
    add_library(ddpm_cudnn INTERFACE)
    target_include_directories(ddpm_cudnn SYSTEM INTERFACE ${CUDNN_INCLUDE} ${DDPM_CUDA_INCLUDE})
    target_compile_definitions(ddpm_cudnn INTERFACE DDPM_CUDNN)
    if(NOT DDPM_CUDA_MODE STREQUAL "EMULATED")
      target_link_libraries(ddpm_cudnn INTERFACE ${CUDNN_LIBRARY} CUDA::cublasLt)
    endif()
  endif()
endif()
if(DDPM_CUDNN STREQUAL "ON" AND NOT DDPM_CUDNN_MODE)
  message(FATAL_ERROR "DDPM_CUDNN=ON and no cuDNN of 9.13 or later: -DCUDNN_ROOT=FOLDER, or run cmake/cuda_wheels.sh")
endif()
message(STATUS "cuDNN: ${DDPM_CUDNN_MODE} ${CUDNN_VERSION}")
