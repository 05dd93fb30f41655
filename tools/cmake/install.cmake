# What `cmake --install` lays down: the program, libplatter with its headers, a CMake package
# (find_package(Platter)) and a pkg-config file (platter.pc).
#
# Drivers register themselves from static initialisers, so both link the whole archive.
include(CMakePackageConfigHelpers)

install(TARGETS platter_static ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
foreach(room block/base block/exec block/node block/crypto block/adapters block/filters block/jobs formats virtio)
  cmake_path(GET room PARENT_PATH parent)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${room} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/platter/${parent}
    FILES_MATCHING PATTERN "*.h")
endforeach()

configure_package_config_file(${PROJECT_SOURCE_DIR}/tools/cmake/PlatterConfig.cmake.in
  ${PROJECT_BINARY_DIR}/PlatterConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Platter
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/PlatterConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/PlatterConfig.cmake ${PROJECT_BINARY_DIR}/PlatterConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Platter)

# The prefix counts from where platter.pc lies: `cmake --install --prefix` may choose another one than
# the configuration did.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(PLATTER_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH up "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(PLATTER_PC_PREFIX "\${pcfiledir}/${up}")
endif()
configure_file(${PROJECT_SOURCE_DIR}/tools/cmake/platter.pc.in ${PROJECT_BINARY_DIR}/platter.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/platter.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
