#include "proxynode/admin/pages.h"

#include <map>
#include <nlohmann/json.hpp>

#include "lwproto/daemon/cluster_pages.h"
#include "lwproto/daemon/metrics_text.h"
#include "lwproto/fabric/link_parameters.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::admin {
namespace {

using nlohmann::json;

using daemon::label;
using daemon::Metrics;

void pool_metrics(const Sources& in, Metrics& m) {
  const std::pair<const char*, const buffer::SlotPool*> pools[] = {{"ingress", in.ingress},
                                                                   {"egress", in.egress}};
  for (const auto& [name, pool] : pools) {
    const std::string pool_label = label("pool", name);
    m.gauge("pool_slots", "Buffers by state", pool->free_count(), pool_label + ",state=\"free\"");
    m.gauge("pool_slots", "Buffers by state", pool->posted_count(),
            pool_label + ",state=\"posted\"");
    m.gauge("pool_slots", "Buffers by state", pool->received_count(),
            pool_label + ",state=\"received\"");
  }
  for (const auto& [name, pool] : pools) {
    m.gauge("pool_slots_free_min", "Fewest free buffers ever seen", pool->free_count_min(),
            label("pool", name));
  }
}

void translate_metrics(const Sources& in, Metrics& m) {
  const translate::TranslatorCounters& c = in.translator->counters();
  m.counter("payload_bytes_total", "Payload bytes translated", c.bytes_to_apps,
            "direction=\"to_application\"");
  m.counter("payload_bytes_total", "Payload bytes translated", c.bytes_from_apps,
            "direction=\"to_client\"");
  const char* copied = "Payload bytes copied by the CPU, by reason";
  m.counter("bytes_copied_total", copied, c.copied_inline, "reason=\"inline\"");
  m.counter("bytes_copied_total", copied, c.copied_isolation, "reason=\"isolation\"");
  m.counter("bytes_copied_total", copied, c.copied_pressure, "reason=\"pressure\"");
  m.counter("bytes_copied_total", copied, in.stack->counters().bytes_copied, "reason=\"stack\"");
  std::uint64_t not_lent = 0;
  for (const packet_io::PacketIo* io : in.interfaces) {
    not_lent += io->counters().tx_bytes_copied_unlent;
  }
  m.counter("bytes_copied_total", copied, not_lent, "reason=\"network_node\"");
  m.gauge("connections_bound", "Connections known to the translator",
          in.translator->bound_streams());
  m.gauge("tx_records", "Pieces of application memory waiting for the client's ACK",
          in.translator->records_used());
  const char* messages = "Connection messages by kind";
  m.counter("connection_messages_total", messages, c.requests, "kind=\"request\"");
  m.counter("connection_messages_total", messages, c.accepts, "kind=\"accept\"");
  m.counter("connection_messages_total", messages, c.rejects, "kind=\"reject\"");
  m.counter("connection_messages_total", messages, c.active_requests, "kind=\"active_request\"");
  m.counter("connection_messages_total", messages, c.late_messages, "kind=\"late\"");
  const char* closed = "Connections that the proxy ended by itself, by reason";
  m.counter("connections_failed_total", closed, c.unserved, "reason=\"unserved\"");
  m.counter("connections_failed_total", closed, c.closed_node_died, "reason=\"node_died\"");
  m.counter("connections_failed_total", closed, c.closed_protocol, "reason=\"protocol\"");
  m.counter("connections_failed_total", closed, c.closed_no_memory, "reason=\"no_memory\"");
  const char* channels = "Channels of application nodes";
  m.counter("channels_total", channels, c.channels_opened, "event=\"opened\"");
  m.counter("channels_total", channels, c.channels_closed, "event=\"closed\"");
  m.counter("channels_total", channels, c.channels_breached, "event=\"breached\"");
  m.counter("channels_total", channels, c.channels_refused, "event=\"refused\"");
  m.counter("channels_total", channels, c.channels_evicted, "event=\"evicted\"");
  m.counter("channels_total", channels, c.channels_timed_out, "event=\"timed_out\"");
  m.counter("joins_total", "JOIN_SERVICE requests", c.joins, "result=\"accepted\"");
  m.counter("joins_total", "JOIN_SERVICE requests", c.joins_refused, "result=\"refused\"");
  const char* join_refused = "JOIN_SERVICE requests refused, by reason";
  m.counter("joins_refused_total", join_refused, c.joins_not_permitted, "reason=\"not_permitted\"");
  m.counter("joins_refused_total", join_refused, c.joins_limited, "reason=\"limit_reached\"");
  m.counter("joins_refused_total", join_refused,
            c.joins_refused - c.joins_not_permitted - c.joins_limited, "reason=\"other\"");
  const char* proofs = "AUTHENTICATE requests by result";
  m.counter("authentications_total", proofs, c.proofs, "result=\"proven\"");
  m.counter("authentications_total", proofs, c.proofs_not_permitted, "result=\"not_permitted\"");
  m.counter("authentications_total", proofs, c.proofs_limited, "result=\"limit_reached\"");
  m.counter("leaves_total", "Memberships ended", c.leaves);
  m.counter("expelled_total", "Of these, because an allow list had changed", c.expelled);
  m.counter("backpressure_total", "Times that a sender was held back", c.refused_payloads,
            "kind=\"client_payload\"");
  m.counter("backpressure_total", "Times that a sender was held back", c.held_writes,
            "kind=\"application_payload\"");
  m.counter("backpressure_total", "Times that a sender was held back", c.waiting_rounds,
            "kind=\"channels_not_polled\"");
  m.counter("backpressure_total", "Times that a sender was held back", c.returned_late,
            "kind=\"lent_to_network_node\"");
  if (const fabric::LentMemory* const lent = in.translator->lent_memory(); lent != nullptr) {
    m.gauge("lent_regions", "Regions of memory that network nodes may read in place",
            lent->region_count());
    m.counter("lent_regions_refused_total", "Regions that there was no place for: copied",
              lent->regions_refused());
  }
}

void health_metrics(const Sources& in, Metrics& m) {
  const translate::TranslatorCounters& c = in.translator->counters();
  m.counter("heartbeats_total", "Heartbeats of application nodes", c.heartbeats, "event=\"asked\"");
  m.counter("heartbeats_total", "Heartbeats of application nodes", c.heartbeats_missed,
            "event=\"missed\"");
  const char* probes = "Requests to members of services with a health check";
  m.counter("health_probes_total", probes, c.probes, "event=\"asked\"");
  m.counter("health_probes_total", probes, c.probes_good, "event=\"good\"");
  m.counter("health_probes_total", probes, c.probes_bad, "event=\"bad\"");
  m.counter("health_probes_total", probes, c.probes_deferred, "event=\"deferred\"");
  const char* changes = "Changes of health";
  m.counter("health_changes_total", changes, c.nodes_went_down, "what=\"node\",to=\"down\"");
  m.counter("health_changes_total", changes, c.nodes_came_up, "what=\"node\",to=\"up\"");
  m.counter("health_changes_total", changes, c.members_went_down, "what=\"member\",to=\"down\"");
  m.counter("health_changes_total", changes, c.members_came_up, "what=\"member\",to=\"up\"");
  std::uint64_t nodes = 0;
  std::uint64_t members = 0;
  in.translator->for_each_node([&](const translate::AppNode& node) {
    if (!node.dead && !node.heartbeat.up()) ++nodes;
  });
  in.translator->services().for_each([&](service::Service& service) {
    for (const service::Member& member : service.members()) members += member.health.down();
  });
  m.gauge("health_down", "Who gets no new connections because of its health", nodes,
          "what=\"node\"");
  m.gauge("health_down", "Who gets no new connections because of its health", members,
          "what=\"member\"");
}

void interface_metrics(const Sources& in, Metrics& m) {
  using Field = std::uint64_t packet_io::Counters::*;
  struct Row {
    const char* name;
    const char* help;
    const char* extra;
    Field field;
  };
  static const Row kRows[] = {
      {"interface_packets_total", "Packets", "direction=\"in\"", &packet_io::Counters::rx_packets},
      {"interface_packets_total", "Packets", "direction=\"out\"", &packet_io::Counters::tx_packets},
      {"interface_bytes_total", "Bytes", "direction=\"in\"", &packet_io::Counters::rx_bytes},
      {"interface_bytes_total", "Bytes", "direction=\"out\"", &packet_io::Counters::tx_bytes},
      {"interface_calls_total", "System calls", "direction=\"in\"", &packet_io::Counters::rx_calls},
      {"interface_calls_total", "System calls", "direction=\"out\"",
       &packet_io::Counters::tx_calls},
      {"interface_bytes_copied_total", "Packet bytes copied by the driver", "direction=\"out\"",
       &packet_io::Counters::tx_bytes_copied},
      {"interface_bytes_copied_total", "Packet bytes copied by the driver", "direction=\"in\"",
       &packet_io::Counters::rx_bytes_copied},
      {"interface_payload_lent_total", "Payload bytes passed on to network nodes where they lie",
       "direction=\"out\"", &packet_io::Counters::tx_bytes_lent},
      {"interface_regions_not_taken_total",
       "Regions of memory that a network node had no place for", "direction=\"out\"",
       &packet_io::Counters::regions_not_taken},
      {"interface_peers_cut_off_total", "Network nodes that kept what they were lent for too long",
       "direction=\"out\"", &packet_io::Counters::peers_cut_off},
      {"interface_neighbor_messages_total", "ARP and neighbour discovery messages",
       "protocol=\"arp\",direction=\"in\"", &packet_io::Counters::arp_in},
      {"interface_neighbor_messages_total", "ARP and neighbour discovery messages",
       "protocol=\"arp\",direction=\"out\"", &packet_io::Counters::arp_out},
      {"interface_neighbor_messages_total", "ARP and neighbour discovery messages",
       "protocol=\"nd\",direction=\"in\"", &packet_io::Counters::nd_in},
      {"interface_neighbor_messages_total", "ARP and neighbour discovery messages",
       "protocol=\"nd\",direction=\"out\"", &packet_io::Counters::nd_out},
      {"interface_decapsulated_total", "Packets taken out of tunnels", "direction=\"in\"",
       &packet_io::Counters::rx_decapsulated},
      {"interface_dropped_total", "Dropped", "reason=\"tunnel\"",
       &packet_io::Counters::rx_dropped_tunnel},
      {"interface_dropped_total", "Dropped", "reason=\"short\"",
       &packet_io::Counters::rx_dropped_short},
      {"interface_dropped_total", "Dropped", "reason=\"not_ip\"",
       &packet_io::Counters::rx_dropped_not_ip},
      {"interface_dropped_total", "Dropped", "reason=\"not_for_us\"",
       &packet_io::Counters::rx_dropped_not_for_us},
      {"interface_dropped_total", "Dropped", "reason=\"metadata\"",
       &packet_io::Counters::rx_dropped_metadata},
      {"interface_dropped_total", "Dropped", "reason=\"truncated\"",
       &packet_io::Counters::rx_truncated},
      {"interface_dropped_total", "Dropped", "reason=\"pieces\"",
       &packet_io::Counters::rx_dropped_joined},
      {"interface_dropped_total", "Dropped", "reason=\"kernel\"",
       &packet_io::Counters::rx_dropped_kernel},
      {"interface_dropped_total", "Dropped", "reason=\"unresolved\"",
       &packet_io::Counters::tx_dropped_unresolved},
      {"interface_dropped_total", "Dropped", "reason=\"device_full\"",
       &packet_io::Counters::tx_dropped_full},
      {"interface_dropped_total", "Dropped", "reason=\"error\"", &packet_io::Counters::tx_errors},
      {"interface_dropped_total", "Dropped", "reason=\"no_network_node\"",
       &packet_io::Counters::tx_dropped_no_peer},
      {"interface_dropped_total", "Dropped", "reason=\"send_back\"",
       &packet_io::Counters::send_back_dropped},
      {"interface_sent_back_total", "Packets of unknown flows returned to their network node",
       "direction=\"out\"", &packet_io::Counters::sent_back},
      {"network_nodes_total", "Channels of network nodes", "event=\"admitted\"",
       &packet_io::Counters::peers_admitted},
      {"network_nodes_total", "Channels of network nodes", "event=\"refused\"",
       &packet_io::Counters::peers_refused},
      {"network_nodes_total", "Channels of network nodes", "event=\"ended\"",
       &packet_io::Counters::peers_ended},
      {"network_nodes_total", "Channels of network nodes", "event=\"breached\"",
       &packet_io::Counters::peers_breached},
  };
  for (const Row& row : kRows) {
    for (const packet_io::PacketIo* io : in.interfaces) {
      m.counter(row.name, row.help, io->counters().*row.field,
                label("interface", io->options().name) + "," + row.extra);
    }
  }
}

// Nodes by fabric, and one series a node with its identity: there are few, and joins over time
// tell which link is which.
void node_metrics(const Sources& in, Metrics& m) {
  std::uint64_t drained = 0;
  in.translator->for_each_node([&](const translate::AppNode& node) { drained += node.drained; });
  m.gauge("nodes_draining", "Application nodes that get no new connections", drained);
  std::map<std::string, std::uint64_t> by_fabric;
  in.translator->for_each_listener(
      [&](const translate::FabricListener& from) { by_fabric.emplace(from.fabric, 0); });
  in.translator->for_each_node([&](const translate::AppNode& node) {
    if (!node.dead) ++by_fabric[node.from->fabric];
  });
  for (const auto& [fabric, count] : by_fabric) {
    m.gauge("nodes", "Application nodes connected, by fabric", count, label("fabric", fabric));
  }
  in.translator->for_each_node([&](const translate::AppNode& node) {
    m.gauge("node_info", "1 for each connected node; its peer and link are in the labels", 1,
            label("node", std::to_string(node.index)) + "," + label("name", node.name) + "," +
                label("fabric", node.from->fabric) + "," + label("peer", node.peer.address) + "," +
                label("certificate", node.peer.certificate_name) + "," +
                label("link", fabric::link_text(node.channel->endpoint().link())));
  });
}

void fabric_metrics(const Sources& in, Metrics& m) {
  in.translator->for_each_listener([&](const translate::FabricListener& from) {
    if (from.made_by == nullptr) return;
    for (const fabric::NamedCount& count : from.made_by->counts()) {
      m.counter("fabric_events_total", "What became of those who tried to connect, and of devices",
                count.value,
                label("fabric", from.fabric) + "," + label("listen", from.listener->address()) +
                    "," + label("event", count.name));
    }
  });
}

Page metrics_page(const Sources& in) {
  Metrics m;
  m.gauge("up", "1 while the worker runs", 1, label("version", in.version));
  m.gauge("draining", "1 while the proxy winds down", in.draining ? 1 : 0);
  stack_metrics(in, m);
  pool_metrics(in, m);
  translate_metrics(in, m);
  health_metrics(in, m);
  node_metrics(in, m);
  if (in.cluster != nullptr) {
    daemon::cluster_metrics(*in.cluster, m);
    m.gauge("cluster_services_leaving",
            "Services that nobody has joined any more, whose connections are open",
            in.leaving.services);
    m.counter("cluster_services_forgotten_total",
              "Of these, those that network nodes are not told of for want of room",
              in.leaving.forgotten);
  }
  fabric_metrics(in, m);
  interface_metrics(in, m);
  m.counter("loop_rounds_total", "Rounds of the data loop", in.loop->rounds);
  m.counter("loop_sleeps_total", "Times that the data loop slept", in.loop->sleeps);
  return {200, "text/plain; version=0.0.4; charset=utf-8", m.take()};
}

// The parameters in force, by the names that nodes ask for them.
json link_json(const fabric::LinkParameters& link) {
  json out = json::object();
  for (const auto& [name, value] : fabric::link_values(link)) {
    const bool plain = json::accept(value);  // a number or true; a name is no JSON
    out[name] = plain ? json::parse(value) : json(value);
  }
  return out;
}

json node_json(const translate::AppNode& node) {
  const channel::ChannelCounters& c = node.channel->counters();
  return {{"node", node.index},
          {"name", node.name},
          {"peer", node.peer.address},
          {"uid", node.peer.uid},
          {"pid", node.peer.pid},
          {"gid", node.peer.gid},
          {"certificate", node.peer.certificate_name},
          {"keys", node.who.keys},
          {"fabric", node.from->fabric},
          {"listen", node.from->listener->address()},
          {"trust", node.lend_ingress ? "shared" : "isolated"},
          {"link", link_json(node.channel->endpoint().link())},
          {"dead", node.dead},
          {"drained", node.drained},
          {"health", node.heartbeat.up() ? "up" : "down"},
          {"heartbeats_missed", node.heartbeat.missed()},
          {"connections", node.open_streams},
          {"credits_available", node.channel->ledger().available()},
          {"region_chunks_free", node.chunks->free_count()},
          {"region_chunks", node.chunks->count()},
          {"messages_in", c.messages_in},
          {"messages_out", c.messages_out},
          {"transfers_in", c.transfers_in},
          {"transfers_out", c.transfers_out},
          {"data_bytes_in", c.data_bytes_in},
          {"data_bytes_out", c.data_bytes_out},
          {"inline_bytes_in", c.inline_bytes_in},
          {"inline_bytes_out", c.inline_bytes_out},
          {"blocked_no_credit", c.blocked_no_credit},
          {"blocked_no_space", c.blocked_no_space}};
}

const char* health_of(const service::Service& service, const service::Member& member) {
  if (!service.policy().health) return "not asked";
  if (member.health.down()) return "down";
  return member.health.up() ? "up" : "unknown";
}

json service_json(const service::Service& service) {
  json members = json::array();
  for (const service::Member& member : service.members()) {
    members.push_back({{"node", member.node},
                       {"name", member.name},
                       {"weight", member.weight},
                       {"connections", member.connections},
                       {"connections_max", member.connections_max},
                       {"picked", member.picked},
                       {"health", health_of(service, member)},
                       {"health_trouble", member.probe_trouble}});
  }
  return {{"address", service.address().to_string()},
          {"balance", service::balance_name(service.policy().balance)},
          {"binding", service.immediate() ? "immediate" : "delayed"},
          {"listening", service.listening},
          {"accepted", service.accepted},
          {"unserved", service.unserved},
          {"members", members}};
}

json pool_json(const buffer::SlotPool& pool) {
  return {{"slots", pool.slot_count()},        {"slot_bytes", pool.slot_bytes()},
          {"free", pool.free_count()},         {"posted", pool.posted_count()},
          {"received", pool.received_count()}, {"free_min", pool.free_count_min()}};
}

json network_node_json(const packet_io::PacketIo& io, const packet_io::PacketPeer& node) {
  return {{"node", node.number},
          {"name", node.name},
          {"peer", node.address},
          {"interface", io.options().name},
          {"connected", node.connected},
          {"packets_in", node.packets_in},
          {"packets_out", node.packets_out},
          {"bytes_in", node.bytes_in},
          {"bytes_out", node.bytes_out},
          {"packets_lent", node.loans_out}};
}

Page status_page(const Sources& in) {
  json states = json::object();
  const auto& counts = in.stack->state_counts();
  for (std::size_t i = 0; i < counts.size(); ++i) {
    states[stack::tcp_state_name(static_cast<stack::TcpState>(i))] = counts[i];
  }
  json nodes = json::array();
  in.translator->for_each_node(
      [&](const translate::AppNode& node) { nodes.push_back(node_json(node)); });
  json services = json::array();
  in.translator->services().for_each(
      [&](service::Service& service) { services.push_back(service_json(service)); });
  json interfaces = json::array();
  for (const packet_io::PacketIo* io : in.interfaces) {
    interfaces.push_back({{"name", io->options().name},
                          {"driver", io->options().driver},
                          {"mode", io->mode()},
                          {"mtu", io->mtu_bytes()},
                          {"packets_in", io->counters().rx_packets},
                          {"packets_out", io->counters().tx_packets}});
  }
  json network_nodes = json::array();
  for (const packet_io::PacketIo* io : in.interfaces) {
    for (const packet_io::PacketPeer& peer : io->peers()) {
      network_nodes.push_back(network_node_json(*io, peer));
    }
  }
  json page = {
      {"name", in.name},
      {"version", in.version},
      {"uptime_s", in.uptime_s},
      {"state", in.state},
      {"connections",
       {{"open", in.stack->open_connections()},
        {"bound", in.translator->bound_streams()},
        {"states", states}}},
      {"tcp_memory",
       {{"used_bytes", in.stack->heap_bytes_used()}, {"max_bytes", in.stack->heap_bytes_max()}}},
      {"pools", {{"ingress", pool_json(*in.ingress)}, {"egress", pool_json(*in.egress)}}},
      {"tx_records", in.translator->records_used()},
      {"services", services},
      {"nodes", nodes},
      {"network_nodes", network_nodes},
      {"interfaces", interfaces}};
  if (in.cluster != nullptr) page["cluster"] = daemon::cluster_json(*in.cluster);
  page["drained_nodes"] = in.translator->drained_names();
  return {200, "application/json", page.dump(2, ' ', false, json::error_handler_t::replace) + "\n"};
}

Page change(const Sources& in, const PageRequest& request) {
  const auto say = [](const std::string& why) {
    if (!why.empty()) return Page{409, "text/plain", why + "\n"};
    return Page{200, "application/json", "{\"ok\": true}\n"};
  };
  if (in.operations == nullptr) return {404, "text/plain", "nothing can be changed here\n"};
  const std::string& path = request.path;
  if (path == "/drain") return say(in.operations->drain());
  if (path == "/undrain") return say(in.operations->undrain());
  constexpr std::string_view kNodes = "/nodes/";
  const std::size_t slash = path.rfind('/');
  if (path.starts_with(kNodes) && slash > kNodes.size()) {
    const std::string name = path.substr(kNodes.size(), slash - kNodes.size());
    const std::string verb = path.substr(slash + 1);
    if (verb == "drain" || verb == "undrain") {
      return say(in.operations->drain_node(name, verb == "drain"));
    }
  }
  return {404, "text/plain", "not here; see /\n"};
}

}  // namespace

Page render(const Sources& in, const PageRequest& request) {
  if (request.method == "POST") return change(in, request);
  if (request.path == "/metrics") return metrics_page(in);
  if (request.path == "/status") return status_page(in);
  if (request.path == "/connections") return connections_page(in, request);
  if (request.path == "/healthz") {
    return in.draining ? Page{503, "text/plain", "draining\n"} : Page{200, "text/plain", "ok\n"};
  }
  if (request.path == "/") {
    return {200, "text/plain",
            "sanproxy: /metrics /status /healthz\n"
            "/connections?limit=N&service=IP:PORT&state=STATE&client=IP&node=NAME\n"
            "POST /drain /undrain /nodes/NAME/drain /nodes/NAME/undrain\n"};
  }
  return {404, "text/plain", "not here; see /\n"};
}

}  // namespace sanproxy::admin
