# The libraries, each as an imported target. Required ones stop the configuration with the Debian package to install;
# optional ones turn a feature on where they are found (`ddpm --version` lists them).
function(ddpm_need target module package)
  pkg_check_modules(${target} IMPORTED_TARGET GLOBAL ${module})
  if(NOT ${target}_FOUND)
    message(FATAL_ERROR "${module} is missing: apt install ${package}, or run ./quickstart.sh")
  endif()
endfunction()

ddpm_need(CYAML libcyaml libcyaml-dev)
ddpm_need(JANSSON jansson libjansson-dev)
ddpm_need(LIBZIP libzip libzip-dev)
ddpm_need(ZLIB zlib zlib1g-dev)
ddpm_need(XXHASH libxxhash libxxhash-dev)
find_path(STB_INCLUDE stb/stb_image.h)
if(NOT STB_INCLUDE)
  message(FATAL_ERROR "stb_image is missing: apt install libstb-dev, or run ./quickstart.sh")
endif()

# oneDNN 2.x or 3.x, headers dnnl.h. -DDNNL_ROOT=FOLDER chooses another than the system's.
find_path(DNNL_INCLUDE dnnl.h HINTS ${DNNL_ROOT}/include)
find_library(DNNL_LIBRARY dnnl HINTS ${DNNL_ROOT}/lib)
if(NOT DNNL_INCLUDE OR NOT DNNL_LIBRARY)
  message(FATAL_ERROR "oneDNN is missing: apt install libdnnl-dev, or run ./quickstart.sh")
endif()
add_library(ddpm_dnnl INTERFACE)
target_include_directories(ddpm_dnnl SYSTEM INTERFACE ${DNNL_INCLUDE})
target_link_libraries(ddpm_dnnl INTERFACE ${DNNL_LIBRARY})

find_path(BLAS_INCLUDE cblas.h PATH_SUFFIXES openblas x86_64-linux-gnu/openblas-openmp
          HINTS /usr/include/x86_64-linux-gnu/openblas-openmp)
find_library(BLAS_LIBRARY openblas PATH_SUFFIXES openblas-openmp)

# Optional.
pkg_check_modules(PROTOBUF_C IMPORTED_TARGET GLOBAL libprotobuf-c)
find_program(PROTOC_C protoc-c)
pkg_check_modules(ISAL IMPORTED_TARGET GLOBAL libisal)
pkg_check_modules(WEBP IMPORTED_TARGET GLOBAL libwebp libwebpmux)
pkg_check_modules(CMOCKA IMPORTED_TARGET GLOBAL cmocka)
