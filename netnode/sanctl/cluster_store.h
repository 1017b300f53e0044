// ClusterStore: what sanctl reads and changes of a cluster in etcd.
//
// Documents: docs/cluster.md, docs/sanctl.md.
// Role: the whole state at one revision; the configuration with its history, changed in one
//   transaction; drains. Thread: the main one. Throws Failure.
// Invariants:
//   1. A change of the configuration is one transaction that holds only if nothing of it has
//      changed since it was read; it writes the entry of the history as well.
//   2. A version that is kept is never written over, whatever head says.
//   3. At most kHistoryMax versions are kept, the oldest go first.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/cluster/etcd_client.h"
#include "lwproto/cluster/state.h"
#include "netnode/sanctl/config_document.h"
#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {

struct Version {
  std::int64_t number = 0;
  std::int64_t time_s = 0;  // Unix time
  std::string by, message;
  nlohmann::json config;
};

struct Configuration {
  std::int64_t version = 0;   // the last that was set with sanctl, by head or history; 0: none yet
  std::int64_t revision = 0;  // of etcd's store, when it was read
  bool schema = false;
  Keys keys;
  std::map<std::string, std::string> refused;  // keys as they are, and why no node takes them
};

class ClusterStore {
 public:
  static constexpr std::int64_t kHistoryMax = 64;

  explicit ClusterStore(const Options& options);

  // Every entry that is good; what is not is reported in `refused`.
  std::map<std::string, cluster::Entry> entries(
      std::map<std::string, std::string>* refused = nullptr);

  Configuration configuration();
  // `before` is what it replaces. The number of the new version.
  std::int64_t set(const Configuration& before, const Keys& after, const std::string& message);
  std::vector<Version> history();  // the newest first
  Version version(std::int64_t number);

  void drain(cluster::NodeKind kind, const std::string& name);
  // False if it was not drained.
  bool undrain(cluster::NodeKind kind, const std::string& name);

 private:
  cluster::RangeAnswer list(const std::string& below);
  nlohmann::json transact(nlohmann::json compare, nlohmann::json operations);
  std::optional<std::string> read(const std::string& key);

  std::string root_;
  cluster::EtcdClient client_;
};

}  // namespace sanproxy::sanctl
