#include "netnode/sanctl/ask.h"

#include "netnode/sanctl/admin_client.h"
#include "netnode/sanctl/cluster_store.h"
#include "netnode/sanctl/field.h"

namespace sanproxy::sanctl {

using nlohmann::json;

std::vector<Endpoint> proxy_endpoints(const Options& options) {
  if (!options.whole_cluster()) return {{"", options.admin}};
  std::vector<Endpoint> out;
  for (const auto& [key, entry] : ClusterStore(options).entries()) {
    const auto* record = std::get_if<cluster::NodeRecord>(&entry);
    if (record != nullptr && key.starts_with("node/proxy/") && record->worker == 0 &&
        !record->admin.empty()) {
      out.push_back({record->name, record->admin});
    }
  }
  return out;
}

json status_of(const Endpoint& endpoint) {
  json status = AdminClient(endpoint.address).get_json("/status");
  if (!endpoint.name.empty() && field<std::string>(status, "name", "") != endpoint.name) {
    throw NoAnswer(endpoint.address + " is another node's, seen from here");
  }
  return status;
}

bool is_proxy(const json& status) {
  return status.contains("pools");  // network nodes have no TCP endpoints to tell of
}

void need_proxy(const Endpoint& endpoint, const std::string& what) {
  if (is_proxy(status_of(endpoint))) return;
  throw Failure(endpoint.address + " is a network node's: it has no " + what +
                    "; see sanctl status and nodes",
                kExitUsage);
}

}  // namespace sanproxy::sanctl
