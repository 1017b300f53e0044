// The page /connections (docs/administration.md).
#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "lwproto/cluster/model.h"
#include "proxynode/admin/pages.h"

namespace sanproxy::admin {
namespace {

using nlohmann::json;

// Which connections are asked for; what is not given matches all.
struct Filter {
  std::optional<SocketAddress> service, client;
  std::optional<IpAddress> client_ip;
  std::optional<stack::TcpState> state;
  std::string node;

  // An error names the parameter.
  static Result<Filter> read(const std::map<std::string, std::string>& parameters) {
    Filter out;
    for (const auto& [name, value] : parameters) {
      Status taken;
      if (name == "service") {
        taken = out.take_service(value);
      } else if (name == "client") {
        taken = out.take_client(value);
      } else if (name == "state") {
        taken = out.take_state(value);
      } else if (name == "node") {
        out.node = value;
      } else if (name != "limit") {
        taken = Status::error(Code::kInvalidArgument,
                              "only limit, service, state, client and node are known here");
      }
      if (!taken.ok()) return taken;
    }
    return out;
  }

  // An empty text matches all.
  Status take_service(const std::string& text) {
    if (text.empty()) return {};
    auto address = SocketAddress::parse(text);
    if (!address.ok()) return Status::error(Code::kInvalidArgument, "service is IP:PORT");
    service = *address;
    return {};
  }
  Status take_client(const std::string& text) {
    if (text.empty()) return {};
    if (auto ip = IpAddress::parse(text); ip.ok()) {
      client_ip = *ip;
      return {};
    }
    auto address = SocketAddress::parse(text);
    if (!address.ok()) return Status::error(Code::kInvalidArgument, "client is IP or IP:PORT");
    client = *address;
    return {};
  }
  Status take_state(std::string text) {
    if (text.empty()) return {};
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) {
      return c == '_' ? '-' : static_cast<char>(std::toupper(c));
    });
    for (std::size_t i = 0; i < stack::kTcpStates; ++i) {
      const auto one = static_cast<stack::TcpState>(i);
      if (text == stack::tcp_state_name(one)) state = one;
    }
    if (state) return {};
    return Status::error(Code::kInvalidArgument,
                         "state is a state of TCP, such as ESTABLISHED or CLOSE-WAIT");
  }

  bool matches(stack::TcpState tcp, const stack::ConnectionInfo& info,
               const translate::AppNode* by) const {
    if (service && info.local != *service) return false;
    if (state && tcp != *state) return false;
    if (client && info.remote != *client) return false;
    if (client_ip && info.remote.ip != *client_ip) return false;
    return node.empty() ||
           (by != nullptr && (by->name == node || cluster::name_before_pid(by->name) == node));
  }
};

}  // namespace

Page connections_page(const Sources& in, const PageRequest& request) {
  const Result<Filter> filter = Filter::read(request.parameters);
  if (!filter.ok()) return {400, "text/plain", std::string(filter.status().text()) + "\n"};
  const std::uint32_t limit = request.limit;
  json rows = json::array();
  std::uint64_t total = 0;
  in.stack->for_each(
      [&](stack::ConnIndex conn, stack::TcpState state, const stack::ConnectionInfo& info) {
        const translate::AppNode* node =
            conn == stack::kNoConn ? nullptr : in.translator->node_of(conn);
        if (!filter->matches(state, info, node)) return;
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
