// ConfigError: what is wrong with a configuration, for the operator: file, line, what was expected.
//
// Thread: start-up only.
#pragma once

#include <stdexcept>

namespace sanproxy::daemon {

class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace sanproxy::daemon
