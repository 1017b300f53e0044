// Paths for sockets of one test process.
#pragma once

#include <stdlib.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace sanproxy::fabric::test {

// Removed when the process ends normally. Processes that it starts, and may kill, use the same.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    if (const char* inherited = std::getenv(kVariable)) {
      path_ = inherited;
      owner_ = 0;
      return;
    }
    std::string name = "/tmp/sanproxy-fabric-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    if (::setenv(kVariable, name.c_str(), 1) != 0) std::abort();
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (::getpid() == owner_) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  static constexpr const char* kVariable = "SANPROXY_TEST_FOLDER";

  std::string path_;
  pid_t owner_ = ::getpid();
};

inline std::string unused_path() {
  static TemporaryFolder folder;
  static int next = 0;
  return folder.path() + "/" + std::to_string(::getpid()) + "-" + std::to_string(next++) + ".sock";
}

}  // namespace sanproxy::fabric::test
