// The page /connections (docs/administration.md).
#include <nlohmann/json.hpp>

#include "proxynode/admin/pages.h"

namespace sanproxy::admin {
namespace {

using nlohmann::json;

// Which connections are asked for; what is not given matches all.
struct Filter {
  std::string service, state, client, node;

  explicit Filter(const std::map<std::string, std::string>& parameters) {
    const auto take = [&](const char* name, std::string& out) {
      if (const auto it = parameters.find(name); it != parameters.end()) out = it->second;
    };
    take("service", service);
    take("state", state);
    take("client", client);
    take("node", node);
  }
  // A client by its address, with or without the port.
  bool matches(stack::TcpState tcp, const stack::ConnectionInfo& info,
               const translate::AppNode* by) const {
    if (!service.empty() && info.local.to_string() != service) return false;
    if (!state.empty() && stack::tcp_state_name(tcp) != state) return false;
    if (!client.empty() && info.remote.to_string() != client &&
        info.remote.ip.to_string() != client) {
      return false;
    }
    return node.empty() || (by != nullptr && by->name == node);
  }
};

}  // namespace

Page connections_page(const Sources& in, const PageRequest& request) {
  const Filter filter(request.parameters);
  const std::uint32_t limit = request.limit;
  json rows = json::array();
  std::uint64_t total = 0;
  in.stack->for_each(
      [&](stack::ConnIndex conn, stack::TcpState state, const stack::ConnectionInfo& info) {
        const translate::AppNode* node =
            conn == stack::kNoConn ? nullptr : in.translator->node_of(conn);
        if (!filter.matches(state, info, node)) return;
        if (++total > limit) return;
        json row = {{"client", info.remote.to_string()},
                    {"local", info.local.to_string()},
                    {"state", stack::tcp_state_name(state)}};
        if (conn != stack::kNoConn) {
          row["id"] = in.translator->id_of(conn);
          row["node"] = node == nullptr ? json(nullptr) : json(node->name);
        }
        rows.push_back(std::move(row));
      });
  const json page = {{"total", total}, {"shown", rows.size()}, {"connections", rows}};
  return {200, "application/json", page.dump(2, ' ', false, json::error_handler_t::replace) + "\n"};
}

}  // namespace sanproxy::admin
