// Reading one table of the configuration: what every section of it is read with.
//
// Role: rejects keys that are not declared, wrong types and impossible values, with file and line.
// Thread: start-up only; throws ConfigError.
// Invariants:
//   1. Every error names the file, the line and what was expected.
#pragma once

#include <toml++/toml.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "lwproto/base/status.h"
#include "lwproto/daemon/config_error.h"

namespace sanproxy::daemon {

[[noreturn]] void config_fail(const std::string& path, const toml::source_region& where,
                              const std::string& what);

// One TOML table whose keys are all declared: reads the known ones, rejects the rest.
class TableReader {
 public:
  TableReader(const std::string& path, const std::string& name, const toml::table& table)
      : path_(path), name_(name), table_(table) {}

  void text(const char* key, const std::function<void(const std::string&)>& set) {
    declare(key, "a string", [this, set, key](const toml::node& node) {
      const auto* value = node.as_string();
      if (value == nullptr) wrong(key, node, "a string");
      apply(key, node, [&] { set(value->get()); });
    });
  }
  template <typename T>
  void number(const char* key, T& out, std::uint64_t min, std::uint64_t max) {
    declare(key, "a number", [this, &out, min, max, key](const toml::node& node) {
      const auto* value = node.as_integer();
      const std::string range =
          "an integer from " + std::to_string(min) + " to " + std::to_string(max);
      if (value == nullptr) wrong(key, node, range);
      const std::int64_t v = value->get();
      if (v < 0 || static_cast<std::uint64_t>(v) < min || static_cast<std::uint64_t>(v) > max) {
        wrong(key, node, range);
      }
      out = static_cast<T>(v);
    });
  }
  void flag(const char* key, bool& out) {
    declare(key, "true or false", [this, &out, key](const toml::node& node) {
      const auto* value = node.as_boolean();
      if (value == nullptr) wrong(key, node, "true or false");
      out = value->get();
    });
  }
  // A table inside: `read` makes a TableReader of its own for it.
  void table(const char* key, const std::function<void(const toml::table&)>& read) {
    declare(key, "a table", [this, read, key](const toml::node& node) {
      const auto* inside = node.as_table();
      if (inside == nullptr) wrong(key, node, "a table, such as { a = 1, b = 2 }");
      read(*inside);
    });
  }
  // A table of numbers by name.
  void numbers(const char* key, std::map<std::string, std::uint32_t>& out, std::uint32_t min,
               std::uint32_t max) {
    declare(key, "a table of numbers", [this, &out, min, max, key](const toml::node& node) {
      const auto* table = node.as_table();
      const std::string range = "a table of integers from " + std::to_string(min) + " to " +
                                std::to_string(max) + ", such as { web1 = 3 }";
      if (table == nullptr) wrong(key, node, range);
      for (const auto& [name, item] : *table) {
        const auto* value = item.as_integer();
        if (value == nullptr || value->get() < min || value->get() > max) wrong(key, item, range);
        out[std::string(name.str())] = static_cast<std::uint32_t>(value->get());
      }
    });
  }
  // `found` is called before the first `add`, also for a list with nothing in it.
  void texts(const char* key, const std::function<void(const std::string&)>& add,
             const std::function<void()>& found = nullptr) {
    declare(key, "a list of strings", [this, add, found, key](const toml::node& node) {
      const auto* list = node.as_array();
      if (list == nullptr) wrong(key, node, "a list of strings");
      if (found) found();
      for (const toml::node& item : *list) {
        const auto* value = item.as_string();
        if (value == nullptr) wrong(key, item, "a list of strings");
        apply(key, item, [&] { add(value->get()); });
      }
    });
  }
  void read() {
    for (const auto& [key, node] : table_) {
      const auto it = readers_.find(std::string(key.str()));
      if (it == readers_.end()) {
        std::string known;
        for (const auto& [k, r] : readers_) known += (known.empty() ? "" : ", ") + k;
        config_fail(
            path_, key.source(),
            "unknown key \"" + std::string(key.str()) + "\" in " + name_ + "; known: " + known);
      }
      it->second(node);
    }
  }
  [[noreturn]] void missing(const char* key) const {
    config_fail(path_, table_.source(), name_ + " needs \"" + key + "\"");
  }

 private:
  using Reader = std::function<void(const toml::node&)>;
  void declare(const char* key, const char*, Reader reader) { readers_[key] = std::move(reader); }
  [[noreturn]] void wrong(const std::string& key, const toml::node& node,
                          const std::string& expected) const {
    config_fail(path_, node.source(), name_ + "." + key + ": expected " + expected);
  }
  void apply(const char* key, const toml::node& node, const std::function<void()>& fn) const {
    try {
      fn();
    } catch (const std::invalid_argument& e) {
      config_fail(path_, node.source(), name_ + "." + key + ": " + e.what());
    }
  }

  const std::string& path_;
  std::string name_;
  const toml::table& table_;
  std::map<std::string, Reader> readers_;
};

template <typename T>
T value_or_throw(Result<T> result, const std::string& text, const char* expected) {
  if (!result.ok()) {
    throw std::invalid_argument(std::string("expected ") + expected + ", not \"" + text + "\"");
  }
  return *result;
}

template <typename T>
T choose(const std::string& text, std::initializer_list<std::pair<const char*, T>> choices) {
  std::string names;
  for (const auto& [name, value] : choices) {
    if (text == name) return value;
    names += (names.empty() ? "\"" : ", \"") + std::string(name) + "\"";
  }
  throw std::invalid_argument("expected one of " + names + ", not \"" + text + "\"");
}

inline constexpr std::uint64_t kU32 = std::numeric_limits<std::uint32_t>::max();
inline constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

}  // namespace sanproxy::daemon
