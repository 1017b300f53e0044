#include "lwproto/daemon/config_reader.h"

#include <sstream>

namespace sanproxy::daemon {

void config_fail(const std::string& path, const toml::source_region& where,
                 const std::string& what) {
  std::ostringstream out;
  out << path;
  if (where.begin.line != 0) out << ":" << where.begin.line;
  out << ": " << what;
  throw ConfigError(out.str());
}

}  // namespace sanproxy::daemon
