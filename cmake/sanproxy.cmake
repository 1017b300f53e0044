# Build rules shared by every folder: one target a folder, one test program a file of tests.

add_library(sanproxy_flags INTERFACE)
target_include_directories(sanproxy_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(sanproxy_flags INTERFACE -fno-omit-frame-pointer)
if(PROJECT_IS_TOP_LEVEL) # the warnings are ours, not those of a project that links a library of ours
  target_compile_options(sanproxy_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
    -Wnon-virtual-dtor -Woverloaded-virtual -Werror>)
  define_property(TARGET PROPERTY SANPROXY_LINK_TIME) # sanproxy_link_time() says what that is
  target_link_options(sanproxy_flags INTERFACE
    $<$<NOT:$<BOOL:$<TARGET_PROPERTY:SANPROXY_LINK_TIME>>>:-fno-lto>)
endif()
if(SANPROXY_SANITIZE)
  # Code of tests (tests/CMakeLists.txt says so) goes without those checks of pointers that cost a quarter of
  # its compilation; what they find there AddressSanitizer ends as well.
  define_property(TARGET PROPERTY SANPROXY_TEST_CODE INITIALIZE_FROM_VARIABLE SANPROXY_TEST_CODE)
  target_compile_options(sanproxy_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all
    $<$<BOOL:$<TARGET_PROPERTY:SANPROXY_TEST_CODE>>:-fno-sanitize=null,vptr,object-size>)
  target_link_options(sanproxy_flags INTERFACE -fsanitize=address,undefined)
endif()

# Files that are compiled several in one (a unity build) share one anonymous namespace. These do not
# go together with their neighbours: names or headers clash.
function(sanproxy_apart)
  set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# sanproxy_hot(FILES...): what every message goes through, a few short functions in a row: the compiler
# is to make one of them where it can. Fields written one by one stay so: put together in a vector register
# they cost more than they save, and more when they are read again one by one.
function(sanproxy_hot)
  if(NOT SANPROXY_SANITIZE) # the headers are compiled for -O2
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-O3;-fno-tree-slp-vectorize"
      SKIP_PRECOMPILE_HEADERS ON)
  endif()
endfunction()

# sanproxy_link_time(PROGRAM LIBRARIES...): the program is optimized as a whole, as far as it consists of
# these libraries: what every packet goes through. All other programs take the libraries as they are.
# Not for what is installed as a library: another compiler could not read it.
function(sanproxy_link_time program)
  if(SANPROXY_SANITIZE OR CMAKE_BUILD_TYPE STREQUAL "Debug" OR NOT PROJECT_IS_TOP_LEVEL)
    return()
  endif()
  set_target_properties(${program} PROPERTIES SANPROXY_LINK_TIME ON)
  target_link_options(${program} PRIVATE -flto=auto)
  foreach(library IN LISTS ARGN)
    target_compile_options(${library} PRIVATE -flto -ffat-lto-objects)
    set_target_properties(${library} PROPERTIES DISABLE_PRECOMPILE_HEADERS ON)
  endforeach()
endfunction()

# sanproxy_command_line(FILES...): what reads a program's options. CLI11 is one large header, over
# which the optimizer takes longer than over anything of ours. Not for programs that move data: of
# an inline function that two files have the linker keeps either.
function(sanproxy_command_line)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -O0
    SKIP_UNITY_BUILD_INCLUSION ON SKIP_PRECOMPILE_HEADERS ON)
endfunction()

# sanproxy_precompiled(TARGET): where files are compiled one by one, the standard's headers are half of the
# work, and are compiled once. ccache does this better, and does not go together with it; so whoever builds
# with ccache sees whether a file has the includes it needs.
function(sanproxy_precompiled target)
  if(CMAKE_CXX_COMPILER_LAUNCHER OR CMAKE_UNITY_BUILD OR NOT PROJECT_IS_TOP_LEVEL)
    return()
  endif()
  if(NOT TARGET sanproxy_headers)
    file(WRITE ${CMAKE_BINARY_DIR}/headers.cc "")
    add_library(sanproxy_headers OBJECT ${CMAKE_BINARY_DIR}/headers.cc)
    target_link_libraries(sanproxy_headers PRIVATE sanproxy_flags)
    target_precompile_headers(sanproxy_headers PRIVATE <algorithm> <array> <chrono> <cstdint> <cstring>
      <deque> <functional> <map> <memory> <optional> <random> <set> <span> <string> <string_view>
      <utility> <variant> <vector>)
  endif()
  target_precompile_headers(${target} REUSE_FROM sanproxy_headers)
endfunction()

# sanproxy_library(NAME SOURCES... [LIBS ...]): the target of one folder.
function(sanproxy_library name)
  cmake_parse_arguments(arg "" "" "LIBS" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS)
    add_library(${name} STATIC ${arg_UNPARSED_ARGUMENTS})
    target_link_libraries(${name} PUBLIC sanproxy_flags ${arg_LIBS})
    sanproxy_precompiled(${name})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE sanproxy_flags ${arg_LIBS})
  endif()
endfunction()

# sanproxy_program(NAME SOURCES... [LIBS ...]): a program in build/<preset>/bin.
function(sanproxy_program name)
  cmake_parse_arguments(arg "" "" "LIBS" ${ARGN})
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE sanproxy_flags ${arg_LIBS})
endfunction()

# sanproxy_test_precompiled(TARGETS...): for what is linked with GTest::gtest. GoogleTest and the containers
# are half of what the compiler reads for a test. Not with ccache: see sanproxy_precompiled().
function(sanproxy_test_precompiled)
  if(CMAKE_CXX_COMPILER_LAUNCHER)
    return()
  endif()
  if(NOT TARGET sanproxy_test_headers)
    file(WRITE ${CMAKE_BINARY_DIR}/test_headers.cc "")
    add_library(sanproxy_test_headers OBJECT ${CMAKE_BINARY_DIR}/test_headers.cc)
    target_link_libraries(sanproxy_test_headers PRIVATE sanproxy_flags GTest::gtest)
    target_precompile_headers(sanproxy_test_headers PRIVATE <gtest/gtest.h> <algorithm> <array>
      <deque> <functional> <map> <memory> <optional> <random> <span> <string> <thread> <vector>)
  endif()
  foreach(target IN LISTS ARGN)
    target_precompile_headers(${target} REUSE_FROM sanproxy_test_headers)
  endforeach()
endfunction()

# sanproxy_test(NAME SOURCES... [GUEST] [LONG] [LIBS ...] [LABELS ...]): a GoogleTest program known
# to ctest; with GUEST, one that needs RDMA and is run in the soft-RoCE guest instead (tests/vm);
# LONG ones are started first.
function(sanproxy_test name)
  cmake_parse_arguments(arg "GUEST;LONG" "" "LIBS;LABELS" ${ARGN})
  find_package(GTest REQUIRED)
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE sanproxy_flags ${arg_LIBS} GTest::gmock GTest::gtest_main)
  sanproxy_test_precompiled(${name})
  if(arg_GUEST)
    set_target_properties(${name} PROPERTIES
      RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/guest_tests)
    return()
  endif()
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT TARGET unit_tests) # all that ctest runs, and no more: what the sanitizers' suite needs
    add_custom_target(unit_tests)
  endif()
  add_dependencies(unit_tests ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300 LABELS "unit;${arg_LABELS}")
  if(arg_LONG)
    set_tests_properties(${name} PROPERTIES COST 100)
  endif()
endfunction()
