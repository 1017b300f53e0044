#include "lwproto/daemon/config_sections.h"

#include <net/if.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string_view>

namespace sanproxy::daemon {
namespace {

// What is longer is no configuration (but a device, say, that never ends).
constexpr std::size_t kFileBytesMax = std::size_t{16} << 20;
// A dotted key is a table within a table for each dot, which toml++ frees by calling itself:
// without a bound that is the whole stack. Values within values are bounded by toml++.
constexpr std::size_t kKeyPartsMax = 32;

// Behind the string that begins at `at`; where it does not end, toml++ reads no further either.
std::size_t behind_string(std::string_view text, std::size_t at) {
  const char quote = text[at];
  const std::string three(3, quote);
  const bool many_lines = text.substr(at, 3) == three;
  at += many_lines ? 3 : 1;
  while (at < text.size()) {
    if (text[at] == '\\' && quote == '"') {
      at += 2;
    } else if (many_lines && text.substr(at, 3) == three) {
      const std::size_t end = std::min(at + 5, text.size());  // two more may stand before the three
      for (at += 3; at < end && text[at] == quote;) ++at;
      return at;
    } else if (!many_lines && text[at] == quote) {
      return at + 1;
    } else if (!many_lines && text[at] == '\n') {
      return at;
    } else {
      ++at;
    }
  }
  return text.size();
}

// The line of the first key that has more than kKeyPartsMax parts.
std::optional<std::size_t> line_of_too_deep_key(std::string_view text) {
  std::size_t dots = 0;
  for (std::size_t at = 0; at < text.size();) {
    const char c = text[at];
    if (c == '"' || c == '\'') {
      at = behind_string(text, at);
      continue;
    }
    if (c == '#') {
      at = std::min(text.find('\n', at), text.size());
      continue;
    }
    if (c == '.' && ++dots == kKeyPartsMax) {
      const std::string_view before = text.substr(0, at);
      return 1 + static_cast<std::size_t>(std::count(before.begin(), before.end(), '\n'));
    }
    if (std::string_view("\n=,[{").find(c) != std::string_view::npos) dots = 0;
    ++at;
  }
  return std::nullopt;
}

std::string text_of(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) config_fail(path, {}, "is a directory");
  std::ifstream file(path, std::ios::binary);
  if (!file) config_fail(path, {}, "cannot be opened for reading");
  std::string text;
  std::array<char, 65536> piece;
  while (file.read(piece.data(), piece.size()) || file.gcount() > 0) {
    text.append(piece.data(), static_cast<std::size_t>(file.gcount()));
    if (text.size() > kFileBytesMax) config_fail(path, {}, "is longer than 16 MB");
  }
  return text;
}

}  // namespace

toml::table parse_config_file(const std::string& path) {
  const std::string text = text_of(path);
  if (const auto line = line_of_too_deep_key(text)) {
    toml::source_region where;
    where.begin.line = static_cast<toml::source_index>(*line);
    config_fail(path, where, "a key of more than " + std::to_string(kKeyPartsMax) + " parts");
  }
  try {
    return toml::parse(std::string_view(text), std::string_view(path));
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
      text.find_first_of("/:%") != std::string::npos ||
      std::any_of(text.begin(), text.end(),
                  [](unsigned char c) { return c <= ' ' || c == 0x7f; })) {
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
