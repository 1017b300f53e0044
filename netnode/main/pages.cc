#include "netnode/main/pages.h"

#include <array>
#include <nlohmann/json.hpp>
#include <span>

#include "lwproto/daemon/cluster_pages.h"
#include "lwproto/daemon/metrics_text.h"
#include "netnode/net/packet.h"
#include "netnode/packet_io/channel_link.h"

namespace sanproxy::netnode {
namespace {

using daemon::label;
using daemon::Metrics;
using daemon::Page;
using nlohmann::json;

std::string both(const std::string& a, const std::string& b) { return a + "," + b; }

void drop_metrics(const Node& node, Metrics& m) {
  const steer::ForwarderCounters& f = node.path().forwarder().counters();
  const DataPathCounters& d = node.path().counters();
  const char* name = "netnode_packets_dropped_total";
  const char* help = "Packets that did not go on, by reason";
  for (std::size_t i = 1; i < f.malformed.size(); ++i) {
    const char* reason = net::drop_reason_name(static_cast<net::DropReason>(i));
    if (std::string(reason) == "unknown") continue;
    m.counter(name, help, f.malformed[i], label("reason", std::string("malformed-") + reason));
  }
  for (std::size_t i = 2; i < f.drops.size(); ++i) {
    m.counter(name, help, f.drops[i],
              label("reason", steer::drop_name(static_cast<steer::Drop>(i))));
  }
  for (std::size_t i = 1; i < d.nat_drops.size(); ++i) {
    const char* reason = steer::nat_result_name(static_cast<steer::NatResult>(i));
    if (std::string(reason) == "unknown") continue;
    m.counter(name, help, d.nat_drops[i], label("reason", std::string("nat_") + reason));
  }
  m.counter(name, help, d.dropped_too_big, label("reason", "too_big"));
  m.counter(name, help, d.icmp_limited, label("reason", "icmp_limited"));
  m.counter(name, help, d.dropped_no_route, label("reason", "no_tunnel_address"));
  m.counter(name, help, d.dropped_hop_limit, label("reason", "hop_limit"));
  m.counter(name, help, d.dropped_tunnel_in, label("reason", "offload"));
  m.counter(name, help, d.dropped_uncut, label("reason", "udp_offload"));
  m.counter(name, help, d.dropped_channel, label("reason", "channel"));
  m.counter(name, help, d.dropped_reply_malformed, label("reason", "reply_malformed"));
  m.counter(name, help, d.dropped_reply_foreign, label("reason", "reply_foreign"));
  m.counter(name, help, d.dropped_sent_back, label("reason", "sent_back"));
}

void forwarder_metrics(const Node& node, Metrics& m) {
  const steer::Forwarder& f = node.path().forwarder();
  const steer::ForwarderCounters& c = f.counters();
  m.counter("netnode_packets_total", "Packets judged", c.packets);
  const char* found = "How the proxy of a packet was found";
  m.counter("netnode_steered_total", found, c.by_flow, label("by", "flow_table"));
  m.counter("netnode_steered_total", found, c.by_nat, label("by", "nat_session"));
  m.counter("netnode_steered_total", found, c.by_tag, label("by", "session_tag"));
  m.counter("netnode_steered_total", found, c.by_maglev, label("by", "maglev"));
  m.counter("netnode_steered_total", found, c.new_sessions, label("by", "new_session"));
  m.counter("netnode_retries_total", "Packets that a proxy gave back as unknown",
            c.retries - c.retries_final, label("last", "no"));
  m.counter("netnode_retries_total", "Packets that a proxy gave back as unknown", c.retries_final,
            label("last", "yes"));
  m.counter("netnode_fragments_held_total", "Fragments that came before their first",
            c.fragments_held);
  m.counter("netnode_fragments_displaced_total", "Fragmented datagrams forgotten for want of room",
            f.fragments().displaced());
  m.counter("netnode_icmp_errors_total", "ICMP errors brought to their flow", c.icmp_errors);
  m.gauge("netnode_generation", "Changes of the Maglev tables", f.generation());
  m.counter("netnode_tables_built_total", "Maglev tables built", f.tables_built());
  m.gauge("netnode_flows", "Entries of the flow table", f.flows().size());
  m.gauge("netnode_flows_max", "Places in the flow table", f.flows().capacity());
  m.counter("netnode_flows_evicted_total", "Flows forgotten for want of room", f.flows().evicted());
  m.counter("netnode_flows_refused_total", "Flows not remembered for want of room",
            f.flows().refused());
  m.gauge("netnode_nat_sessions", "Translated sessions", f.nat().sessions());
  const steer::NatCounters& n = f.nat().counters();
  const char* events = "What became of translated sessions";
  m.counter("netnode_nat_sessions_total", events, n.created, label("event", "created"));
  m.counter("netnode_nat_sessions_total", events, n.expired, label("event", "expired"));
  m.counter("netnode_nat_sessions_total", events, n.displaced, label("event", "displaced"));
  m.counter("netnode_nat_sessions_total", events, n.reused_closing, label("event", "port_reused"));
}

void redirect_metrics(const Node& node, Metrics& m) {
  if (node.redirect() == nullptr) return;
  const packet_io::FlowRedirectCounters c = node.redirect()->counters();
  const char* packets = "Packets of established sessions behind NAT that the kernel carried";
  m.counter("netnode_kernel_packets_total", packets, c.to_proxy, label("direction", "to_proxy"));
  m.counter("netnode_kernel_packets_total", packets, c.to_client, label("direction", "to_client"));
  m.counter("netnode_kernel_dropped_total", "Packets that it could not finish for want of memory",
            c.dropped);
  const char* entries = "Flows given to the kernel; each session is two";
  m.counter("netnode_kernel_flows_total", entries, c.put, label("result", "taken"));
  m.counter("netnode_kernel_flows_total", entries, c.refused, label("result", "refused"));
}

void path_metrics(const Node& node, Metrics& m) {
  const DataPathCounters& d = node.path().counters();
  const char* ways = "Packets sent, by way";
  m.counter("netnode_forwarded_total", ways, d.to_channel, label("way", "channel"));
  m.counter("netnode_forwarded_total", ways, d.to_tunnel, label("way", "tunnel"));
  m.counter("netnode_forwarded_total", ways, d.to_nat, label("way", "nat"));
  m.counter("netnode_forwarded_total", ways, d.to_client, label("way", "client"));
  m.counter("netnode_echo_replies_total", "Echo requests answered", d.echo_replies);
  m.counter("netnode_packet_too_big_total", "Answers that a packet is too big", d.packet_too_big);
  m.gauge("netnode_draining", "1 while it is out for new sessions", node.draining() ? 1 : 0);
  m.gauge("netnode_no_proxy", "1 while no proxy is up or drains, for no_proxy_ms and longer",
          node.of_use() ? 0 : 1);
  m.gauge("netnode_buffers_free", "Packet buffers free", node.pool().free_count());
  m.gauge("netnode_buffers_free_min", "The fewest that ever were", node.pool().free_count_min());
  m.gauge("netnode_buffers", "Packet buffers", node.pool().slot_count());
  const auto interfaces = node.path().interfaces();
  const auto each = [&](const char* name, const char* help, auto value) {
    for (std::size_t i = 0; i < interfaces.size(); ++i) {
      m.counter(name, help, value(*interfaces[i], node.path().way_out(i)),
                label("interface", interfaces[i]->options().name));
    }
  };
  each("netnode_rx_packets_total", "Packets received",
       [](const auto& io, const auto&) { return io.counters().rx_packets; });
  each("netnode_rx_bytes_total", "Bytes received",
       [](const auto& io, const auto&) { return io.counters().rx_bytes; });
  each("netnode_tx_packets_total", "Packets sent",
       [](const auto& io, const auto&) { return io.counters().tx_packets; });
  each("netnode_tx_bytes_total", "Bytes sent",
       [](const auto& io, const auto&) { return io.counters().tx_bytes; });
  each("netnode_tx_full_total", "Packets that the device did not take",
       [](const auto&, const auto& out) { return out.dropped_full; });
}

struct DropRow {
  const char* reason;
  std::uint64_t packet_io::Counters::*value;
};

void by_reason(const Node& node, Metrics& m, const char* name, const char* help,
               std::span<const DropRow> rows) {
  for (const packet_io::PacketIo* io : node.path().interfaces()) {
    for (const DropRow& row : rows) {
      m.counter(name, help, io->counters().*row.value,
                both(label("interface", io->options().name), label("reason", row.reason)));
    }
  }
}

void dropped_metrics(const Node& node, Metrics& m) {
  using C = packet_io::Counters;
  constexpr std::array<DropRow, 6> kReceived = {{{"not_for_us", &C::rx_dropped_not_for_us},
                                                 {"not_ip", &C::rx_dropped_not_ip},
                                                 {"short", &C::rx_dropped_short},
                                                 {"truncated", &C::rx_truncated},
                                                 {"metadata", &C::rx_dropped_metadata},
                                                 {"buffer_full", &C::rx_dropped_kernel}}};
  by_reason(node, m, "netnode_rx_refused_total", "Frames that the driver dropped, by reason",
            kReceived);
  constexpr std::array<DropRow, 3> kSent = {{{"unresolved", &C::tx_dropped_unresolved},
                                             {"device_full", &C::tx_dropped_full},
                                             {"error", &C::tx_errors}}};
  by_reason(node, m, "netnode_tx_dropped_total", "Packets that the driver did not send, by reason",
            kSent);
}

void proxy_metrics(const Node& node, Metrics& m) {
  const auto proxies = node.proxies();
  for (const Node::ProxyView& view : proxies) {
    m.gauge("netnode_proxy_up", "1: the proxy takes new sessions",
            view.proxy->state == steer::ProxyState::kUp && view.proxy->weight() != 0 ? 1 : 0,
            both(label("proxy", view.proxy->config.name),
                 label("state", steer::proxy_state_name(view.proxy->state))));
  }
  for (const Node::ProxyView& view : proxies) {
    m.gauge("netnode_proxy_sessions", "Sessions of the proxy that this node knows", view.sessions,
            label("proxy", view.proxy->config.name));
  }
  for (const Node::ProxyView& view : proxies) {
    m.counter("netnode_proxy_packets_total", "Packets for the proxy", view.proxy->packets,
              label("proxy", view.proxy->config.name));
  }
}

// Of channels: what became of packets between us and their proxies.
void link_metrics(const Node& node, Metrics& m) {
  using C = packet_io::ChannelLinkCounters;
  struct Row {
    const char* name;
    const char* help;
    const char* extra;  // a label more
    std::uint64_t C::*value;
  };
  const char* packets = "Packets over the proxy's channel";
  const char* bytes = "Bytes over the proxy's channel";
  const char* lost = "Packets that the proxy's channel did not take, or that it lost";
  const char* events = "What happened to the proxy's channel";
  const std::array<Row, 16> rows = {{
      {"netnode_link_packets_total", packets, "direction=\"out\"", &C::tx_packets},
      {"netnode_link_packets_total", packets, "direction=\"in\"", &C::rx_packets},
      {"netnode_link_bytes_total", bytes, "direction=\"out\"", &C::tx_bytes},
      {"netnode_link_bytes_total", bytes, "direction=\"in\"", &C::rx_bytes},
      {"netnode_link_bytes_copied_total", "Packet bytes copied into transfers", "direction=\"out\"",
       &C::tx_bytes_copied},
      {"netnode_link_given_back_total", "Packets that the proxy gave back as unknown", "",
       &C::rx_unknown_flow},
      {"netnode_link_not_sent_total", lost, "reason=\"down\"", &C::tx_refused_down},
      {"netnode_link_not_sent_total", lost, "reason=\"full\"", &C::tx_refused_full},
      {"netnode_link_not_sent_total", lost, "reason=\"invalid\"", &C::tx_invalid},
      {"netnode_link_not_sent_total", lost, "reason=\"lost\"", &C::tx_lost},
      {"netnode_link_malformed_total", "Packets of the proxy that were none", "",
       &C::rx_dropped_malformed},
      {"netnode_link_dropped_ended_total", "Packets of a proxy that had gone before they were read",
       "", &C::rx_dropped_ended},
      {"netnode_link_events_total", events, "event=\"connected\"", &C::connects},
      {"netnode_link_events_total", events, "event=\"failed\"", &C::connect_failures},
      {"netnode_link_events_total", events, "event=\"ended\"", &C::disconnects},
      {"netnode_link_events_total", events, "event=\"silent\"", &C::silences},
  }};
  const auto proxies = node.proxies();
  for (const Row& row : rows) {
    for (const Node::ProxyView& view : proxies) {
      if (view.link == nullptr) continue;
      const std::string proxy = label("proxy", view.proxy->config.name);
      m.counter(row.name, row.help, view.link->counters().*row.value,
                row.extra[0] == '\0' ? proxy : both(proxy, row.extra));
    }
  }
}

Page metrics_page(const Node& node) {
  Metrics m;
  forwarder_metrics(node, m);
  drop_metrics(node, m);
  redirect_metrics(node, m);
  path_metrics(node, m);
  dropped_metrics(node, m);
  proxy_metrics(node, m);
  link_metrics(node, m);
  if (node.cluster() != nullptr) {
    daemon::cluster_metrics(node.cluster()->status(), m);
    m.gauge("netnode_cluster_left_out", "Proxies and services of the cluster that are not taken",
            node.cluster()->left_out().count());
  }
  return {200, "text/plain; version=0.0.4; charset=utf-8", m.take()};
}

json proxy_json(const Node::ProxyView& view) {
  const steer::ProxyConfig& config = view.proxy->config;
  json addresses = json::array();
  if (!config.channel.empty()) addresses.push_back(config.channel);
  for (const SocketAddress& target : config.targets) {
    addresses.push_back(target.port == 0 ? target.ip.to_string() : target.to_string());
  }
  json out = {{"name", config.name},
              {"id", view.proxy->tag},
              {"weight", view.proxy->weight()},
              {"mode", steer::mode_name(config.mode)},
              {"addresses", addresses},
              {"state", steer::proxy_state_name(view.proxy->state)},
              {"health", view.health},
              {"drain", view.drain_asked || config.draining},
              {"sessions", view.sessions},
              {"empty", view.sessions == 0},
              {"packets", view.proxy->packets}};
  if (!view.detail.empty()) out["last_error"] = view.detail;
  return out;
}

Page json_page(const json& page) {
  return {200, "application/json", page.dump(2, ' ', false, json::error_handler_t::replace) + "\n"};
}

json cluster_json(const Node& node) {
  if (node.cluster() == nullptr) return nullptr;
  json out = daemon::cluster_json(node.cluster()->status());
  out["left_out"] = node.cluster()->left_out().texts();
  return out;
}

Page status_page(const Node& node) {
  json proxies = json::array();
  for (const Node::ProxyView& view : node.proxies()) proxies.push_back(proxy_json(view));
  json services = json::array();
  for (const steer::Forwarder::Service& service : node.path().forwarder().services()) {
    services.push_back({{"address", service.config.address.to_string()},
                        {"protocol", service.config.protocol == net::kProtocolTcp ? "tcp" : "udp"},
                        {"proxies", service.config.proxies}});
  }
  json interfaces = json::array();
  for (const packet_io::PacketIo* io : node.path().interfaces()) {
    interfaces.push_back(
        {{"name", io->options().name}, {"driver", io->options().driver}, {"mtu", io->mtu_bytes()}});
  }
  const steer::Forwarder& f = node.path().forwarder();
  return json_page({{"name", node.config().name},
                    {"version", node.version()},
                    {"uptime_s", node.uptime_s()},
                    {"state", node.state()},
                    {"sessions", node.sessions()},
                    {"generation", f.generation()},
                    {"flows",
                     {{"used", f.flows().size()},
                      {"places", f.flows().capacity()},
                      {"memory_bytes", f.flows().memory_bytes()}}},
                    {"nat_sessions", f.nat().sessions()},
                    {"nat_in_kernel", node.redirect() != nullptr},
                    {"buffers",
                     {{"free", node.pool().free_count()},
                      {"posted", node.pool().posted_count()},
                      {"slots", node.pool().slot_count()}}},
                    {"proxies", proxies},
                    {"services", services},
                    {"interfaces", interfaces},
                    {"cluster", cluster_json(node)}});
}

Page drain_page(Node& node, const std::string& name, bool on) {
  if (!node.drain(name, on)) return {404, "text/plain", "there is no proxy \"" + name + "\"\n"};
  for (const Node::ProxyView& view : node.proxies()) {
    if (view.proxy->config.name != name) continue;
    if (!on && view.proxy->config.draining) {
      return {409, "text/plain",
              "the file, the cluster or the proxy itself drains \"" + name + "\" as well\n"};
    }
    return json_page(proxy_json(view));
  }
  return {404, "text/plain", "not here\n"};
}

}  // namespace

Page render_page(Node& node, const daemon::PageRequest& request) {
  const std::string& path = request.path;
  if (request.method == "POST") {
    if (path == "/drain") {
      node.drain();
      return {200, "application/json", "{\"ok\": true}\n"};
    }
    if (path == "/undrain") {
      const std::string wrong = node.undrain();
      return wrong.empty() ? Page{200, "application/json", "{\"ok\": true}\n"}
                           : Page{409, "text/plain", wrong + "\n"};
    }
    if (path.rfind("/drain/", 0) == 0) return drain_page(node, path.substr(7), true);
    if (path.rfind("/undrain/", 0) == 0) return drain_page(node, path.substr(9), false);
    return {404, "text/plain", "not here: POST /drain, /undrain, /drain/PROXY or /undrain/PROXY\n"};
  }
  if (path == "/metrics") return metrics_page(node);
  if (path == "/status") return status_page(node);
  if (path == "/healthz") {
    if (node.draining()) return {503, "text/plain", "draining\n"};
    if (node.knows_nothing()) return {503, "text/plain", "the cluster has told nothing yet\n"};
    return node.of_use() ? Page{200, "text/plain", "ok\n"}
                         : Page{503, "text/plain", "no proxy is up\n"};
  }
  if (path == "/") {
    return {200, "text/plain",
            "sanproxy network node: /metrics /status /healthz\n"
            "POST /drain /undrain /drain/PROXY /undrain/PROXY\n"};
  }
  return {404, "text/plain", "not here; see /\n"};
}

}  // namespace sanproxy::netnode
