// sanctl top: a table of rates that refreshes.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>

#include "netnode/sanctl/admin_client.h"
#include "netnode/sanctl/ask.h"
#include "netnode/sanctl/commands.h"
#include "netnode/sanctl/table.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

// What one node said at one time.
struct Sample {
  Clock::time_point at;
  double connections = 0, accepted = 0, bytes_in = 0, bytes_out = 0, packets_in = 0,
         packets_out = 0, dropped = 0;
};

Sample sample(const Endpoint& endpoint) {
  need_proxy(endpoint, "rates of connections");
  const auto m = parse_metrics(AdminClient(endpoint.address).get_text("/metrics"));
  Sample out;
  out.at = Clock::now();
  out.connections = sum_of_series(m, "sanproxy_connections_bound");
  out.accepted = sum_of_series(m, "sanproxy_tcp_accepted_total");
  out.bytes_in = sum_of_series(m, "sanproxy_payload_bytes_total", "direction=\"to_application\"");
  out.bytes_out = sum_of_series(m, "sanproxy_payload_bytes_total", "direction=\"to_client\"");
  out.packets_in = sum_of_series(m, "sanproxy_interface_packets_total", "direction=\"in\"");
  out.packets_out = sum_of_series(m, "sanproxy_interface_packets_total", "direction=\"out\"");
  out.dropped = sum_of_series(m, "sanproxy_packets_dropped_total") +
                sum_of_series(m, "sanproxy_interface_dropped_total");
  return out;
}

std::string short_number(double value) {
  const char* units[] = {"", "k", "M", "G", "T"};
  std::size_t unit = 0;
  while (value >= 10'000 && unit < 4) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), "%.0f%s", value, units[unit]);
  return text;
}

struct Rates {
  double accepted, bytes_in, bytes_out, packets_in, packets_out, dropped;
};

Rates rates_of(const Sample& before, const Sample& now) {
  const double s = std::chrono::duration<double>(now.at - before.at).count();
  // A node that was started again counts from 0.
  const auto rate = [s](double a, double b) { return s > 0 && b >= a ? (b - a) / s : 0; };
  return {rate(before.accepted, now.accepted),       rate(before.bytes_in, now.bytes_in),
          rate(before.bytes_out, now.bytes_out),     rate(before.packets_in, now.packets_in),
          rate(before.packets_out, now.packets_out), rate(before.dropped, now.dropped)};
}

// One look: a row of each node, and who could not be asked.
struct Look {
  Table table{
      {"NODE", "CONNECTIONS", "NEW/s", "IN B/s", "OUT B/s", "IN pkt/s", "OUT pkt/s", "DROPPED/s"}};
  json rows = json::array();
  std::vector<std::string> trouble;
};

void add_row(Look& look, const std::string& node, const Sample& now, const Rates& r) {
  look.table.add({node, short_number(now.connections), short_number(r.accepted),
                  short_number(r.bytes_in), short_number(r.bytes_out), short_number(r.packets_in),
                  short_number(r.packets_out), short_number(r.dropped)});
  look.rows.push_back({{"node", node},
                       {"connections", now.connections},
                       {"new_per_s", r.accepted},
                       {"bytes_in_per_s", r.bytes_in},
                       {"bytes_out_per_s", r.bytes_out},
                       {"packets_in_per_s", r.packets_in},
                       {"packets_out_per_s", r.packets_out},
                       {"dropped_per_s", r.dropped}});
}

Look look_once(const Options& options, std::map<std::string, Sample>& before, bool is_first) {
  Look out;
  const auto endpoints = proxy_endpoints(options);
  const auto answers = ask_all(endpoints, sample);
  if (is_first || !options.whole_cluster()) need_any(endpoints, answers);
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const std::string& node = endpoints[i].name.empty() ? options.admin : endpoints[i].name;
    if (!answers[i].value) {
      out.table.add({node, "no answer", "", "", "", "", "", ""});
      out.rows.push_back({{"node", node}, {"error", answers[i].why}});
      out.trouble.push_back(node + " was not asked: " + answers[i].why);
      before.erase(node);
      continue;
    }
    const Sample& now = *answers[i].value;
    const auto last = before.find(node);
    if (last != before.end()) add_row(out, node, now, rates_of(last->second, now));
    before[node] = now;
  }
  return out;
}

}  // namespace

void show_top(const Options& options, const TopOptions& how) {
  std::map<std::string, Sample> before;
  const bool screen = isatty(STDOUT_FILENO) == 1 && !options.json;
  // The first look has nothing to compare with.
  for (std::uint32_t round = 0; how.count == 0 || round <= how.count; ++round) {
    if (round != 0) std::this_thread::sleep_for(std::chrono::duration<double>(how.interval_s));
    const Look look = look_once(options, before, round == 0);
    if (round == 0) continue;
    if (options.json) {
      std::puts(look.rows.dump(-1, ' ', false, json::error_handler_t::replace).c_str());
    } else {
      if (screen) std::fputs("\x1b[H\x1b[2J", stdout);
      std::fputs(look.table.text().c_str(), stdout);
      for (const std::string& line : look.trouble) std::printf("! %s\n", line.c_str());
    }
    if (std::fflush(stdout) != 0) return;  // nobody reads it any more; main() says so
  }
}

}  // namespace sanproxy::sanctl
