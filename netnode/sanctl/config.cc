// sanctl config: the cluster's configuration, its history, and the way back.
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <iterator>

#include "netnode/sanctl/commands.h"
#include "netnode/sanctl/table.h"
#include "netnode/sanctl/view.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

constexpr std::size_t kDocumentBytesMax = std::size_t{4} << 20;

void need_cluster(const Options& options) {
  if (options.whole_cluster()) return;
  throw Failure(
      "the configuration of a cluster is in etcd: say --etcd URL (one node has its TOML file)",
      kExitUsage);
}

json document_from(const std::string& file) {
  std::string text;
  std::ifstream in;
  if (file != "-") {
    in.open(file);
    if (!in || in.peek() == EOF) throw Failure(file + " cannot be read, or is empty", kExitUsage);
  }
  std::istream& from = file == "-" ? std::cin : in;
  for (char c = 0; from.get(c);) {
    text += c;
    if (text.size() > kDocumentBytesMax) throw Failure(file + " is longer than 4 MB", kExitUsage);
  }
  return parse_document(text, file);
}

std::string dump(const json& value, int indent = 2) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

std::string time_text(std::int64_t time_s) {
  const auto seconds = static_cast<std::time_t>(time_s);
  std::tm utc{};
  char text[32] = "?";
  if (gmtime_r(&seconds, &utc) != nullptr) {
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  }
  return text;
}

// Writes, unless nothing differs, and says what it did.
void change(const Options& options, ClusterStore& store, const Configuration& before,
            const Keys& after, const ConfigOptions& how, const std::string& message) {
  const auto lines = differences(before.keys, after);
  if (how.version && *how.version != before.version) {
    throw Failure("the configuration is at version " + std::to_string(before.version) + ", not " +
                      std::to_string(*how.version),
                  kExitConflict);
  }
  std::int64_t version = before.version;
  if (!lines.empty() && !how.dry_run) version = store.set(before, after, message);
  if (options.json) {
    std::puts(dump({{"version", version},
                    {"changed", lines.size()},
                    {"differences", lines},
                    {"dry_run", how.dry_run}})
                  .c_str());
    return;
  }
  for (const std::string& line : lines) std::puts(line.c_str());
  if (lines.empty()) {
    std::printf("nothing differs from version %lld\n", static_cast<long long>(version));
  } else if (how.dry_run) {
    std::puts("not written: --dry-run");
  } else {
    std::printf("version %lld\n", static_cast<long long>(version));
  }
}

void print_refused(const Configuration& now) {
  for (const auto& [key, why] : now.refused) {
    std::fprintf(stderr, "! no node takes %s: %s\n", key.c_str(), why.c_str());
  }
}

}  // namespace

void config_get(const Options& options, const ConfigOptions& how) {
  need_cluster(options);
  ClusterStore store(options);
  json document;
  if (how.version) {
    document = store.version(*how.version).config;
  } else {
    const Configuration now = store.configuration();
    print_refused(now);
    document = document_of(now.keys);
  }
  if (how.what.empty()) {
    std::puts(dump(document).c_str());
    return;
  }
  (void)key_of(how.what);
  const std::size_t slash = how.what.find('/');
  const json section = document.value(how.what.substr(0, slash), json::object());
  const auto entry = section.find(how.what.substr(slash + 1));
  if (entry == section.end()) throw Failure(how.what + " is not configured");
  std::puts(dump(*entry).c_str());
}

void config_set(const Options& options, const ConfigOptions& how) {
  need_cluster(options);
  const bool one = is_entry_path(how.what);
  Keys after;
  ClusterStore store(options);
  if (!one) {
    if (how.remove || !how.value.empty()) {
      throw Failure(
          "a value and --delete go with services/IP:PORT, proxies/NAME or cluster/heartbeat",
          kExitUsage);
    }
    after = keys_of(document_from(how.what));
  }
  const Configuration before = store.configuration();
  if (one) {
    const std::string key = key_of(how.what);
    after = before.keys;
    if (how.remove) {
      if (after.erase(key) == 0) throw Failure(how.what + " is not configured");
    } else {
      if (how.value.empty()) throw Failure("a value, or --delete, is missing", kExitUsage);
      const std::size_t slash = how.what.find('/');
      const json document = {{how.what.substr(0, slash),
                              {{how.what.substr(slash + 1), parse_document(how.value, how.what)}}}};
      after[key] = keys_of(document).at(key);
    }
  }
  change(options, store, before, after, how, how.message);
}

void config_diff(const Options& options, const ConfigOptions& how) {
  need_cluster(options);
  ClusterStore store(options);
  Keys from, to;
  if (!how.what.empty()) {  // a file: what setting it would change
    from = store.configuration().keys;
    to = keys_of(document_from(how.what));
  } else if (how.version) {
    from = keys_of(store.version(*how.version).config);
    to = how.other ? keys_of(store.version(*how.other).config) : store.configuration().keys;
  } else {  // what was changed by other hands
    const Configuration now = store.configuration();
    if (now.version != 0) from = keys_of(store.version(now.version).config);
    to = now.keys;
  }
  const auto lines = differences(from, to);
  if (options.json) {
    std::puts(dump(json(lines)).c_str());
    return;
  }
  for (const std::string& line : lines) std::puts(line.c_str());
  if (lines.empty()) std::puts("nothing differs");
}

void config_rollback(const Options& options, const ConfigOptions& how) {
  need_cluster(options);
  ClusterStore store(options);
  const Configuration before = store.configuration();
  const std::int64_t target = how.other.value_or(before.version - 1);
  if (target < 1) throw Failure("there is no version to go back to: see sanctl config history");
  const Keys after = keys_of(store.version(target).config);
  change(options, store, before, after, how,
         how.message.empty() ? "back to version " + std::to_string(target) : how.message);
}

void config_history(const Options& options) {
  need_cluster(options);
  ClusterStore store(options);
  Table table({"VERSION", "TIME", "BY", "MESSAGE"});
  json out = json::array();
  for (const Version& one : store.history()) {
    table.add({std::to_string(one.number), time_text(one.time_s), one.by, one.message});
    out.push_back({{"version", one.number},
                   {"time", time_text(one.time_s)},
                   {"by", one.by},
                   {"message", one.message},
                   {"config", one.config}});
  }
  if (options.json) {
    std::puts(dump(out).c_str());
  } else {
    std::fputs(table.text().c_str(), stdout);
  }
}

}  // namespace sanproxy::sanctl
