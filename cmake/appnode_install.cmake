# The application library for programs that are built elsewhere: headers, one archive, and what
# find_package(sanproxy) and pkg-config ask for. Nothing of ours is in the headers but what they declare.
include(CMakePackageConfigHelpers)

set(parts appnode_client lwproto_auth lwproto_base lwproto_buffer lwproto_channel lwproto_cluster
  lwproto_fabric lwproto_fabric_shm lwproto_fabric_tcp lwproto_fabric_verbs lwproto_flow lwproto_wire)
list(TRANSFORM parts REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>" OUTPUT_VARIABLE objects)
add_library(appnode_archive STATIC ${objects})
set_target_properties(appnode_archive PROPERTIES LINKER_LANGUAGE CXX OUTPUT_NAME sanproxy_appnode)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/sanproxy)
set(pkgconfig_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH up /${pkgconfig_dir} /) # so that --prefix may come later
configure_file(cmake/sanproxy-appnode.pc.in sanproxy-appnode.pc @ONLY)
configure_package_config_file(cmake/sanproxy-config.cmake.in sanproxy-config.cmake
  INSTALL_DESTINATION ${package_dir} PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(sanproxy-config-version.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS appnode_archive ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY appnode-lib/include/sanproxy DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${PROJECT_BINARY_DIR}/sanproxy-config.cmake
  ${PROJECT_BINARY_DIR}/sanproxy-config-version.cmake DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/sanproxy-appnode.pc DESTINATION ${pkgconfig_dir})
