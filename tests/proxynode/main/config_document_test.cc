// docs/configuration.md lists exactly the keys that the program knows.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <vector>

#include "tests/proxynode/main/config_fixture.h"

namespace sanproxy::proxy::testing {
namespace {

using Keys = std::map<std::string, std::set<std::string>>;  // by section

std::set<std::string> in_backticks(const std::string& text) {
  std::set<std::string> out;
  for (std::size_t at = text.find('`'); at != std::string::npos; at = text.find('`', at + 1)) {
    const std::size_t end = text.find('`', at + 1);
    if (end == std::string::npos) break;
    out.insert(text.substr(at + 1, end - at - 1));
    at = end;
  }
  return out;
}

// Headings "## `[proxy]`" and the first column of the tables under them.
Keys documented() {
  std::ifstream page(SANPROXY_SOURCE_DIR "/docs/configuration.md");
  EXPECT_TRUE(page.good());
  Keys out;
  std::string section;
  for (std::string line; std::getline(page, line);) {
    if (line == "# netnode") break;  // the other program's
    if (line.rfind("## ", 0) == 0) {
      const auto names = in_backticks(line);
      section = names.empty() ? "" : *names.begin();
      std::erase_if(section, [](char c) { return c == '[' || c == ']'; });
    } else if (!section.empty() && line.rfind("| `", 0) == 0) {
      out[section].merge(in_backticks(line.substr(0, line.find('|', 1))));
    }
  }
  return out;
}

// What the program says when it meets a key that it does not know.
std::set<std::string> known_in(const std::string& section) {
  const std::set<std::string> tables = {"admin", "cluster", "heartbeat", "limits", "proxy"};
  const bool list = !tables.contains(section);
  const std::string header = list ? "[[" + section + "]]" : "[" + section + "]";
  const std::string error = error_of(header + "\nno_such_key = 1\n");
  const std::size_t at = error.find("known: ");
  EXPECT_NE(at, std::string::npos) << error;
  std::set<std::string> out;
  std::istringstream keys(error.substr(at + 7));
  for (std::string key; std::getline(keys, key, ',');) {
    out.insert(key.substr(key.find_first_not_of(' ')));
  }
  return out;
}

TEST(ConfigDocument, ListsExactlyTheSectionsThatTheProgramKnows) {
  std::set<std::string> sections;
  for (const auto& [section, keys] : documented()) sections.insert(section);
  EXPECT_EQ(sections, (std::set<std::string>{"admin", "cluster", "fabric", "heartbeat", "interface",
                                             "key", "limits", "proxy", "service"}));
  const std::string error = error_of("[no_such_section]\n");
  EXPECT_NE(error.find(
                "known: admin, cluster, fabric, heartbeat, interface, key, limits, proxy, service"),
            std::string::npos);
}

TEST(ConfigDocument, ListsExactlyTheKeysThatTheProgramKnows) {
  for (const auto& [section, keys] : documented()) {
    EXPECT_EQ(keys, known_in(section)) << "of [" << section << "] in docs/configuration.md";
  }
}

}  // namespace
}  // namespace sanproxy::proxy::testing
