#include "lwproto/daemon/config_sections.h"

#include <net/if.h>

#include <filesystem>

namespace sanproxy::daemon {

toml::table parse_config_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) config_fail(path, {}, "is a directory");
  try {
    return toml::parse_file(path);
  } catch (const toml::parse_error& e) {
    config_fail(path, e.source(), std::string(e.description()));
  }
}

std::vector<const toml::table*> section_tables(const std::string& path, const std::string& name,
                                               bool many, const toml::node& node) {
  if (!many) {
    const auto* table = node.as_table();
    if (table == nullptr) config_fail(path, node.source(), "expected a table [" + name + "]");
    return {table};
  }
  std::vector<const toml::table*> out;
  const std::string expected = "expected [[" + name + "]], a list of tables";
  const auto* list = node.as_array();
  if (list == nullptr) config_fail(path, node.source(), expected);
  for (const toml::node& item : *list) {
    out.push_back(item.as_table());
    if (out.back() == nullptr) config_fail(path, item.source(), expected);
  }
  return out;
}

std::string interface_name(const std::string& text) {
  if (text.empty() || text.size() >= IFNAMSIZ || text == "." || text == ".." ||
      text.find_first_of("/:% \t\n\v\f\r") != std::string::npos) {
    throw std::invalid_argument(
        "expected 1 to 15 characters without '/', ':', '%' and spaces, not \"" + text + "\"");
  }
  return text;
}

void read_admin(const std::string& path, const toml::table& table, std::string& listen,
                std::vector<IpPrefix>& changes_from) {
  TableReader r(path, "[admin]", table);
  r.text("listen", [&](const std::string& v) {
    if (!v.empty() && value_or_throw(SocketAddress::parse(v), v, "IP:PORT or nothing").port == 0) {
      throw std::invalid_argument("\"" + v + "\" needs a port from 1 on");
    }
    listen = v;
  });
  r.texts("changes_from", [&](const std::string& v) {
    changes_from.push_back(value_or_throw(IpPrefix::parse(v), v, "ADDRESS/BITS"));
  });
  r.read();
}

}  // namespace sanproxy::daemon
