# How the code is cut into targets. A room is a folder compiled as one object library; all rooms
# together are libplatter. Arrows between rooms are checked by tests/layering.

add_library(platter_flags INTERFACE)
target_compile_options(platter_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wnon-virtual-dtor
  -Woverloaded-virtual -Wcast-align -Wold-style-cast $<$<CXX_COMPILER_ID:Clang>:-Wnull-dereference>
  -Wformat=2 -Werror
  $<$<CXX_COMPILER_ID:GNU>:-Wduplicated-cond;-Wlogical-op;-Wno-maybe-uninitialized;-Wno-subobject-linkage>
  # g++ 12 reports false positives of these at -O2 in coroutine frames and in the sanitizers' code.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-array-bounds;-Wno-stringop-overflow;-Wno-stringop-overread;-Wno-restrict;-Wno-dangling-pointer;-Wno-use-after-free>)
if(PLATTER_SANITIZE)
  target_compile_options(platter_flags INTERFACE -fsanitize=${PLATTER_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(platter_flags INTERFACE -fsanitize=${PLATTER_SANITIZE})
endif()
if(PLATTER_SANITIZE STREQUAL "thread")
  # The thread sanitizer does not follow fences. Those of this project order atomics among themselves,
  # of which it knows that they are atomic.
  target_compile_options(platter_flags INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-tsan>)
endif()
if(PLATTER_FUZZ)
  target_compile_options(platter_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
# Which mutex guards what: block/base/thread_annotations.h.
target_compile_options(platter_flags INTERFACE $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)
target_include_directories(platter_flags INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
target_link_libraries(platter_flags INTERFACE fmt::fmt)

# platter_room(NAME [LINK lib...]): every .cpp of the current folder's NAME subfolder (or of the
# folder itself when NAME's folder is ".") as the object library platter_NAME.
function(platter_room name)
  cmake_parse_arguments(ROOM "" "DIR" "LINK" ${ARGN})
  if(NOT ROOM_DIR)
    set(ROOM_DIR ${name})
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${ROOM_DIR}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_library(platter_${name} OBJECT ${sources})
  target_link_libraries(platter_${name} PRIVATE platter_flags ${ROOM_LINK})
  set_property(GLOBAL APPEND PROPERTY PLATTER_ROOMS platter_${name})
  set_property(GLOBAL APPEND PROPERTY PLATTER_ROOM_LIBRARIES ${ROOM_LINK})
endfunction()

# libplatter: all rooms. Drivers register themselves from static initialisers, so a program links
# the whole archive: use platter_whole inside this build, Platter::platter outside.
function(platter_library)
  get_property(rooms GLOBAL PROPERTY PLATTER_ROOMS)
  get_property(libraries GLOBAL PROPERTY PLATTER_ROOM_LIBRARIES)
  list(REMOVE_DUPLICATES libraries)
  set(objects "")
  foreach(room ${rooms})
    list(APPEND objects $<TARGET_OBJECTS:${room}>)
  endforeach()
  add_library(platter_static STATIC ${objects})
  set_target_properties(platter_static PROPERTIES OUTPUT_NAME platter)
  target_link_libraries(platter_static PUBLIC fmt::fmt Threads::Threads PRIVATE ${libraries})
  add_library(platter_whole INTERFACE)
  target_link_libraries(platter_whole INTERFACE
    platter_flags $<LINK_LIBRARY:WHOLE_ARCHIVE,platter_static> ${libraries} Threads::Threads)
endfunction()
