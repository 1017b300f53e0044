# Build rules shared by every folder: one target a folder, one test program a file of tests.

add_library(sanproxy_flags INTERFACE)
target_include_directories(sanproxy_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(sanproxy_flags INTERFACE -fno-omit-frame-pointer)
if(PROJECT_IS_TOP_LEVEL) # the warnings are ours, not those of a project that links a library of ours
  target_compile_options(sanproxy_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion
    -Wnon-virtual-dtor -Woverloaded-virtual -Werror>)
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
# is to make one of them where it can.
function(sanproxy_hot)
  if(NOT SANPROXY_SANITIZE)
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -O3)
  endif()
endfunction()

# sanproxy_command_line(FILES...): what reads a program's options. CLI11 is one large header, over
# which the optimizer takes longer than over anything of ours. Not for programs that move data: of
# an inline function that two files have the linker keeps either.
function(sanproxy_command_line)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -O0
    SKIP_UNITY_BUILD_INCLUSION ON SKIP_PRECOMPILE_HEADERS ON)
endfunction()

# sanproxy_library(NAME SOURCES... [LIBS ...]): the target of one folder.
function(sanproxy_library name)
  cmake_parse_arguments(arg "" "" "LIBS" ${ARGN})
  if(arg_UNPARSED_ARGUMENTS)
    add_library(${name} STATIC ${arg_UNPARSED_ARGUMENTS})
    target_link_libraries(${name} PUBLIC sanproxy_flags ${arg_LIBS})
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

# sanproxy_test(NAME SOURCES... [GUEST] [LONG] [LIBS ...] [LABELS ...]): a GoogleTest program known
# to ctest; with GUEST, one that needs RDMA and is run in the soft-RoCE guest instead (tests/vm);
# LONG ones are started first.
function(sanproxy_test name)
  cmake_parse_arguments(arg "GUEST;LONG" "" "LIBS;LABELS" ${ARGN})
  find_package(GTest REQUIRED)
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE sanproxy_flags ${arg_LIBS} GTest::gmock GTest::gtest_main)
  # GoogleTest and the containers are half of what the compiler reads for a test. ccache does this
  # better, and does not go together with it.
  if(NOT CMAKE_CXX_COMPILER_LAUNCHER)
    if(NOT TARGET sanproxy_test_headers)
      file(WRITE ${CMAKE_BINARY_DIR}/test_headers.cc "")
      add_library(sanproxy_test_headers OBJECT ${CMAKE_BINARY_DIR}/test_headers.cc)
      target_link_libraries(sanproxy_test_headers PRIVATE sanproxy_flags GTest::gtest)
      target_precompile_headers(sanproxy_test_headers PRIVATE <gtest/gtest.h> <algorithm> <array>
        <deque> <functional> <map> <memory> <optional> <random> <span> <string> <thread> <vector>)
    endif()
    target_precompile_headers(${name} REUSE_FROM sanproxy_test_headers)
  endif()
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
