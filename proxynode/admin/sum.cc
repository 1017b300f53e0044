#include "proxynode/admin/sum.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

namespace sanproxy::admin {
namespace {

using nlohmann::json;

bool answered(const WorkerPage& worker) { return worker.page.http_status == 200; }

// --- /metrics

struct Family {
  std::string head;  // its HELP and TYPE lines
  std::vector<std::string> order;
  std::map<std::string, std::uint64_t> values;  // of all workers together
  std::string each;                             // the lines with a worker label
};

// What every worker tells of the same thing is no sum.
enum class Together : std::uint8_t { kSum, kGreatest, kLeast };

Together together(const std::string& name) {
  static const std::map<std::string, Together> kNoSums = {
      {"sanproxy_up", Together::kGreatest},
      {"sanproxy_draining", Together::kGreatest},
      {"sanproxy_cluster_connected", Together::kLeast},  // one that has lost etcd is to be seen
      {"sanproxy_cluster_revision", Together::kGreatest},
      {"sanproxy_cluster_entries", Together::kGreatest},
      {"sanproxy_cluster_entries_refused", Together::kGreatest}};
  const auto known = kNoSums.find(name);
  return known == kNoSums.end() ? Together::kSum : known->second;
}

struct Exposition {
  std::vector<std::string> order;
  std::map<std::string, Family> families;

  Family& family(const std::string& name) {
    const auto [at, created] = families.try_emplace(name);
    if (created) order.push_back(name);
    return at->second;
  }
};

std::string with_worker(const std::string& series, std::uint32_t worker) {
  const std::string label = "worker=\"" + std::to_string(worker) + "\"";
  const auto brace = series.find('{');
  if (brace == std::string::npos) return series + "{" + label + "}";
  return series.substr(0, brace + 1) + label + "," + series.substr(brace + 1);
}

void add_sample(Exposition& out, const std::string& line, std::uint32_t worker) {
  const auto space = line.rfind(' ');
  if (space == std::string::npos) return;
  const std::string series = line.substr(0, space);
  const std::string name = series.substr(0, series.find('{'));
  Family& family = out.family(name);
  family.each += with_worker(series, worker) + line.substr(space) + "\n";
  if (name.ends_with("_info")) return;
  const std::uint64_t value = std::strtoull(line.c_str() + space, nullptr, 10);
  const auto [at, created] = family.values.try_emplace(series, value);
  if (created) return family.order.push_back(series);
  switch (together(name)) {
    case Together::kSum:
      at->second += value;
      break;
    case Together::kGreatest:
      at->second = std::max(at->second, value);
      break;
    case Together::kLeast:
      at->second = std::min(at->second, value);
      break;
  }
}

void add_page(Exposition& out, const WorkerPage& worker) {
  std::istringstream lines(worker.page.body);
  std::map<std::string, std::string> heads;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    if (line[0] != '#') {
      add_sample(out, line, worker.state.index);
      continue;
    }
    std::istringstream words(line);
    std::string mark, kind, name;
    words >> mark >> kind >> name;
    heads[name] += line + "\n";
  }
  for (auto& [name, head] : heads) out.family(name).head = std::move(head);
}

// --- /status

// Numbers add up, objects go in member by member, anything else stays the first one's.
void add_numbers(json& sum, const json& more) {
  for (const auto& [key, value] : more.items()) {
    if (!sum.contains(key)) {
      sum[key] = value;
    } else if (value.is_object()) {
      add_numbers(sum[key], value);
    } else if (value.is_number() && key != "slot_bytes") {
      sum[key] = sum[key].is_number_float()
                     ? json(sum[key].get<double>() + value.get<double>())
                     : json(sum[key].get<std::uint64_t>() + value.get<std::uint64_t>());
    }
  }
}

json* find_by(json& list, const char* key, const json& value) {
  for (json& item : list) {
    if (item[key] == value) return &item;
  }
  return nullptr;
}

void add_services(json& sum, const json& more, std::uint32_t worker) {
  for (const json& service : more) {
    json* known = find_by(sum, "address", service["address"]);
    if (known == nullptr) {
      json first = service;
      first["members"] = json::array();
      first["accepted"] = 0;
      first["unserved"] = 0;
      sum.push_back(std::move(first));
      known = &sum.back();
    }
    for (const char* key : {"accepted", "unserved"}) {
      (*known)[key] = (*known)[key].get<std::uint64_t>() + service[key].get<std::uint64_t>();
    }
    for (json member : service["members"]) {
      member["worker"] = worker;
      (*known)["members"].push_back(std::move(member));
    }
  }
}

void add_interfaces(json& sum, const json& more) {
  for (const json& interface : more) {
    json* known = find_by(sum, "name", interface["name"]);
    if (known == nullptr) {
      sum.push_back(interface);
      continue;
    }
    for (const char* key : {"packets_in", "packets_out"}) {
      (*known)[key] = (*known)[key].get<std::uint64_t>() + interface[key].get<std::uint64_t>();
    }
  }
}

void add_status(json& sum, const json& page, std::uint32_t worker) {
  for (const char* key : {"connections", "tcp_memory", "pools"}) {
    if (page.contains(key)) add_numbers(sum[key], page[key]);
  }
  sum["tx_records"] =
      sum.value("tx_records", std::uint64_t{0}) + page.value("tx_records", std::uint64_t{0});
  sum["uptime_s"] = std::max(sum.value("uptime_s", 0.0), page.value("uptime_s", 0.0));
  for (const char* key : {"name", "version"}) sum[key] = page[key];
  // All are told the same; those that differ are on their way.
  if (!sum.contains("state")) sum["state"] = page["state"];
  if (sum["state"] != page["state"] && sum["state"] != "stopping") {
    sum["state"] = page["state"] == "stopping" ? "stopping" : "draining";
  }
  // All hear the same of etcd, but for one that does not hear it: that one is to be seen.
  for (const char* key : {"cluster", "drained_nodes"}) {
    if (!page.contains(key)) continue;
    const bool lost = page[key].is_object() && !page[key].value("connected", true);
    if (!sum.contains(key) || lost) sum[key] = page[key];
  }
  add_services(sum["services"], page["services"], worker);
  for (json node : page["nodes"]) {
    node["worker"] = worker;
    sum["nodes"].push_back(std::move(node));
  }
  add_interfaces(sum["interfaces"], page["interfaces"]);
}

json state_json(const WorkerState& state) {
  return {{"worker", state.index},
          {"pid", state.pid},
          {"state", state.pid == 0 ? "waiting"
                    : state.ready  ? "running"
                                   : "starting"},
          {"restarts", state.restarts}};
}

Page json_page(const json& page) {
  return {200, "application/json", page.dump(2, ' ', false, json::error_handler_t::replace) + "\n"};
}

}  // namespace

Page sum_metrics(const std::vector<WorkerPage>& workers) {
  Exposition all;
  for (const WorkerPage& worker : workers) {
    if (answered(worker)) add_page(all, worker);
  }
  std::string out;
  for (const std::string& name : all.order) {
    const Family& family = all.families[name];
    out += family.head;
    for (const std::string& series : family.order) {
      out += series + " " + std::to_string(family.values.at(series)) + "\n";
    }
    out += family.each;
  }
  out +=
      "# HELP sanproxy_worker_up 1 for each worker that serves\n# TYPE sanproxy_worker_up gauge\n";
  std::string restarts =
      "# HELP sanproxy_worker_restarts_total Times that a worker was started again\n"
      "# TYPE sanproxy_worker_restarts_total counter\n";
  for (const WorkerPage& worker : workers) {
    const std::string label = "{worker=\"" + std::to_string(worker.state.index) + "\"} ";
    out += "sanproxy_worker_up" + label + (worker.state.ready ? "1\n" : "0\n");
    restarts +=
        "sanproxy_worker_restarts_total" + label + std::to_string(worker.state.restarts) + "\n";
  }
  return {200, "text/plain; version=0.0.4; charset=utf-8", out + restarts};
}

Page sum_status(const std::string& name, const std::vector<WorkerPage>& workers) {
  json sum = {{"name", name},
              {"services", json::array()},
              {"nodes", json::array()},
              {"interfaces", json::array()},
              {"connections", json::object()},
              {"tcp_memory", json::object()},
              {"pools", json::object()}};
  json each = json::array();
  bool all_known = true;
  for (const WorkerPage& worker : workers) {
    json state = state_json(worker.state);
    const json page =
        answered(worker) ? json::parse(worker.page.body, nullptr, false) : json(nullptr);
    if (page.is_object()) {
      add_status(sum, page, worker.state.index);
      for (const char* key : {"connections", "pools", "tcp_memory"}) state[key] = page[key];
    } else if (worker.state.pid != 0) {
      state["answered"] = false;
      all_known = false;
    }
    each.push_back(std::move(state));
  }
  // Nobody knows whether a worker that is silent still has connections.
  if (!all_known && sum.value("state", "") == "drained") sum["state"] = "draining";
  sum["workers"] = std::move(each);
  return json_page(sum);
}

Page sum_connections(const std::vector<WorkerPage>& workers, std::uint32_t limit) {
  json rows = json::array();
  std::uint64_t total = 0;
  for (const WorkerPage& worker : workers) {
    if (worker.page.http_status == 400) return worker.page;  // what was asked is wrong everywhere
    if (!answered(worker)) continue;
    const json page = json::parse(worker.page.body, nullptr, false);
    if (!page.is_object()) continue;
    total += page.value("total", std::uint64_t{0});
    for (json row : page["connections"]) {
      if (rows.size() >= limit) break;
      row["worker"] = worker.state.index;
      rows.push_back(std::move(row));
    }
  }
  return json_page({{"total", total}, {"shown", rows.size()}, {"connections", rows}});
}

Page sum_health(const std::vector<WorkerPage>& workers, bool draining) {
  if (draining) return {503, "text/plain", "draining\n"};
  std::string down;
  for (const WorkerPage& worker : workers) {
    if (!worker.state.ready) down += " " + std::to_string(worker.state.index);
  }
  if (down.empty()) return {200, "text/plain", "ok\n"};
  return {503, "text/plain", "workers that do not serve:" + down + "\n"};
}

}  // namespace sanproxy::admin
