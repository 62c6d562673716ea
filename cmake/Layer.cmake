# ddpm_layer(NAME [USES layer...] [LIBS library...]): every .c of the current folder as one static library.
# A layer's include path holds the public headers, its own folder and those of the layers it uses, so that a
# layer that reaches to its right does not compile.
# No fast-math. The two flags below change no result: nobody reads errno after sqrtf or traps on inexact,
# and without them gcc does not vectorise.
add_library(ddpm_flags INTERFACE)
target_compile_options(ddpm_flags INTERFACE
  -Wall -Wextra -Wshadow -Wpointer-arith -Wwrite-strings -Wvla -Wundef $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes>
  $<$<BOOL:${DDPM_WERROR}>:-Werror>
  -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden)
target_compile_definitions(ddpm_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)
if(DDPM_SANITIZE)
  target_compile_options(ddpm_flags INTERFACE -fsanitize=${DDPM_SANITIZE} -fno-omit-frame-pointer -g1)
  target_link_options(ddpm_flags INTERFACE -fsanitize=${DDPM_SANITIZE})
endif()

function(ddpm_layer name)
  cmake_parse_arguments(ARG "" "" "USES;LIBS;SOURCES" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.c)
  list(APPEND sources ${ARG_SOURCES})
  add_library(ddpm_${name} STATIC ${sources})
  target_include_directories(ddpm_${name} PUBLIC ${PROJECT_SOURCE_DIR}/include ${CMAKE_CURRENT_SOURCE_DIR})
  set(uses)
  foreach(layer IN LISTS ARG_USES)
    list(APPEND uses ddpm_${layer})
  endforeach()
  target_link_libraries(ddpm_${name} PUBLIC ddpm_flags ${uses} PRIVATE ${ARG_LIBS})
endfunction()
