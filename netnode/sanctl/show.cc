// sanctl status, services, nodes, connections.
#include <algorithm>
#include <cstdio>
#include <tuple>
#include <utility>

#include "netnode/sanctl/admin_client.h"
#include "netnode/sanctl/ask.h"
#include "netnode/sanctl/commands.h"
#include "netnode/sanctl/field.h"
#include "netnode/sanctl/table.h"
#include "netnode/sanctl/view.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

void print(const json& out) {
  std::puts(out.dump(2, ' ', false, json::error_handler_t::replace).c_str());
}

std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : ", ") + part;
  return out;
}

// The services of an application node, with those marked where it is not well.
std::vector<std::string> served(const NodeRow& row) {
  std::vector<std::string> out = row.services;
  for (std::string& address : out) {
    const bool down = std::find(row.down.begin(), row.down.end(), address) != row.down.end();
    if (down) address += " (down)";
  }
  return out;
}

std::string number(const std::optional<std::uint64_t>& value) {
  return value ? std::to_string(*value) : "-";
}

void print_trouble(const View& view) {
  for (const auto& [name, why] : view.unreachable) {
    std::printf("! %s was not asked itself: %s\n", name.c_str(), why.c_str());
  }
  for (const auto& [key, why] : view.refused) {
    std::printf("! refused in etcd: %s: %s\n", key.c_str(), why.c_str());
  }
}

std::string text_of(const json& value) {
  return value.is_string() ? value.get<std::string>() : value.is_null() ? "" : value.dump();
}

}  // namespace

void show_status(const Options& options) {
  const View view = look(options);
  if (options.json) {
    json nodes = json::array();
    for (const NodeRow& row : view.nodes) nodes.push_back(to_json(row));
    json services = json::array();
    for (const auto& [address, row] : view.services) services.push_back(to_json(row));
    return print({{"nodes", nodes},
                  {"services", services},
                  {"drains", view.drains},
                  {"unreachable", view.unreachable},
                  {"refused", view.refused},
                  {"troubles", troubles(view)},
                  {"status", view.status}});
  }
  std::map<std::string, std::map<std::string, std::uint64_t>> counts;
  std::uint64_t connections = 0;
  // An application node is at several proxies, and several may have one name at each.
  std::map<std::pair<std::string, std::string>, std::uint64_t> most;
  std::map<std::tuple<std::string, std::string, std::string>, std::uint64_t> at;
  for (const NodeRow& row : view.nodes) {
    if (row.kind == "appnode") {
      const std::uint64_t here = ++at[{row.name, row.state, row.at}];
      if (here <= most[{row.name, row.state}]) continue;
      most[{row.name, row.state}] = here;
    }
    ++counts[row.kind][row.state];
    if (row.kind == "proxy") connections += row.connections.value_or(0);
  }
  if (options.whole_cluster()) {
    std::printf("cluster   %s\n", options.cluster.c_str());
    if (view.nodes.empty()) std::puts("! nobody has registered here: is it the right name?");
  }
  for (const auto& [kind, states] : counts) {
    std::string text;
    for (const auto& [state, count] : states) {
      text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + state;
    }
    std::printf("%-9s %s\n", kind == "proxy" ? "proxies" : (kind + "s").c_str(), text.c_str());
  }
  std::printf("services  %zu\nconnections %llu\n", view.services.size(),
              static_cast<unsigned long long>(connections));
  for (const auto& [name, status] : view.status) {
    const json& cluster = object_in(status, "cluster");
    if (!field<bool>(cluster, "connected", true)) {
      std::printf("! %s has lost etcd: %s\n", name.c_str(),
                  cluster::printable(field<std::string>(cluster, "error", "")).c_str());
    }
  }
  if (!view.drains.empty())
    std::printf("drained by the cluster: %s\n", joined(view.drains).c_str());
  for (const std::string& line : troubles(view)) {
    std::printf("! %s\n", cluster::printable(line).c_str());
  }
  print_trouble(view);
}

void show_services(const Options& options) {
  const View view = look(options);
  if (options.json) {
    json out = json::array();
    for (const auto& [address, row] : view.services) out.push_back(to_json(row));
    return print(out);
  }
  Table table({"SERVICE", "BALANCE", "BINDING", "MEMBERS", "CONNECTIONS", "ACCEPTED", "UNSERVED",
               "PROXIES"});
  for (const auto& [address, row] : view.services) {
    const auto count = [&counted = row.counted](std::uint64_t value) {
      return counted ? std::to_string(value) : "-";
    };
    table.add({row.address, row.balance, row.binding, count(row.members), count(row.connections),
               count(row.accepted), count(row.unserved), joined(row.proxies)});
  }
  std::fputs(table.text().c_str(), stdout);
  print_trouble(view);
}

void show_nodes(const Options& options, const std::string& kind) {
  const View view = look(options);
  json out = json::array();
  Table table({"KIND", "NAME", "STATE", "CONNECTIONS", "WHERE", "SERVES"});
  for (const NodeRow& row : view.nodes) {
    if (!kind.empty() && row.kind != kind) continue;
    out.push_back(to_json(row));
    table.add({row.kind, row.name, row.state, number(row.connections),
               row.kind == "appnode" ? row.where + " at " + row.at : row.where,
               joined(served(row))});
  }
  if (options.json) return print(out);
  std::fputs(table.text().c_str(), stdout);
  print_trouble(view);
}

void show_connections(const Options& options, const ConnectionsOptions& what) {
  std::map<std::string, std::string> query = what.filters;
  query["limit"] = std::to_string(what.limit);
  const std::string path = with_query("/connections", query);
  json rows = json::array();
  std::uint64_t total = 0;
  std::map<std::string, std::string> unreachable;
  const auto endpoints = proxy_endpoints(options);
  const auto answers = ask_all(endpoints, [&path](const Endpoint& endpoint) {
    need_proxy(endpoint, "connections");
    return AdminClient(endpoint.address).get_json(path);
  });
  need_any(endpoints, answers);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const std::string& proxy = endpoints[i].name;
    if (!answers[i].value) {
      unreachable[proxy] = answers[i].why;
      continue;
    }
    const json& page = *answers[i].value;
    total += field<std::uint64_t>(page, "total", 0);
    for (json row : list_in(page, "connections")) {
      if (rows.size() == what.limit) break;
      if (!proxy.empty() && row.is_object()) row["proxy"] = proxy;
      rows.push_back(std::move(row));
    }
  }
  if (options.json) {
    return print({{"total", total}, {"connections", rows}, {"unreachable", unreachable}});
  }
  std::vector<std::string> head = {"CLIENT", "SERVICE", "STATE", "NODE"};
  if (options.whole_cluster()) head.emplace_back("PROXY");
  Table table(std::move(head));
  for (const json& row : rows) {
    if (!row.is_object()) continue;
    const auto cell = [&row](const char* name) {
      return row.contains(name) ? text_of(row[name]) : std::string();
    };
    std::vector<std::string> cells = {cell("client"), cell("local"), cell("state"), cell("node")};
    if (options.whole_cluster()) cells.push_back(cell("proxy"));
    table.add(std::move(cells));
  }
  std::fputs(table.text().c_str(), stdout);
  std::printf("%zu of %llu\n", rows.size(), static_cast<unsigned long long>(total));
  for (const auto& [name, why] : unreachable) {
    std::printf("! %s was not asked: %s\n", name.c_str(), why.c_str());
  }
}

}  // namespace sanproxy::sanctl
