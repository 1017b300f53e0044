// Configuration files of one test.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "proxynode/main/config.h"

namespace sanproxy::proxy::testing {

class ConfigFile {
 public:
  explicit ConfigFile(const std::string& text) {
    std::string name = "/tmp/sanproxy-config-XXXXXX";
    const int fd = ::mkstemp(name.data());
    EXPECT_GE(fd, 0);
    ::close(fd);
    path_ = name;
    std::ofstream(path_) << text;
  }
  ~ConfigFile() { std::remove(path_.c_str()); }
  ConfigFile(const ConfigFile&) = delete;
  ConfigFile& operator=(const ConfigFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// What a file needs at least; one line each, so that line numbers below are easy to count.
inline const std::string kInterface = "[[interface]]\ndriver = \"tun\"\nname = \"san0\"\n";
inline const std::string kFabric = "[[fabric]]\nlisten = \"shm:/tmp/x.sock\"\n";

inline ProxyConfig load(const std::string& text) { return load_config(ConfigFile(text).path()); }

// The message without the path: ":3: what" or ": what"; empty when the file is good.
inline std::string error_of(const std::string& text) {
  const ConfigFile file(text);
  try {
    (void)load_config(file.path());
  } catch (const ConfigError& e) {
    const std::string what = e.what();
    EXPECT_EQ(what.rfind(file.path(), 0), 0u) << what;
    return what.substr(file.path().size());
  }
  return {};
}

}  // namespace sanproxy::proxy::testing
