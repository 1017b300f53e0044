// The TCP stack's part of the page /metrics (docs/administration.md).
#include <utility>

#include "lwproto/daemon/metrics_text.h"
#include "proxynode/admin/pages.h"

namespace sanproxy::admin {
namespace {

using daemon::label;
using daemon::Metrics;

void fragment_metrics(const net::Reassembly& fragments, const char* dropped, Metrics& m) {
  const net::ReassemblyCounters& c = fragments.counters();
  const std::pair<const char*, std::uint64_t> reasons[] = {
      {"fragment_disabled", c.disabled},   {"fragment_not_tcp", c.not_tcp},
      {"fragment_malformed", c.malformed}, {"fragment_tiny", c.tiny},
      {"fragment_overlap", c.overlap},     {"fragment_duplicate", c.duplicate},
      {"fragment_timeout", c.timed_out},   {"fragment_displaced", c.displaced}};
  for (const auto& [reason, count] : reasons) {
    m.counter("packets_dropped_total", dropped, count, label("reason", reason));
  }
  m.counter("fragments_total", "IP fragments received", c.received);
  m.counter("fragments_put_together_total", "IP fragments that became parts of whole packets",
            c.put_together);
  m.counter("datagrams_put_together_total", "Packets made of them", c.whole);
  m.gauge("fragments_waiting", "IP fragments that wait for others", fragments.fragments_waiting());
  m.gauge("fragmented_datagrams", "Datagrams of which they are (max_fragmented_datagrams)",
          fragments.datagrams_waiting());
}

}  // namespace

void stack_metrics(const Sources& in, Metrics& m) {
  const auto& counts = in.stack->state_counts();
  for (std::size_t i = 0; i < counts.size(); ++i) {
    m.gauge("tcp_connections", "TCP endpoints by state", counts[i],
            label("state", stack::tcp_state_name(static_cast<stack::TcpState>(i))));
  }
  const stack::StackCounters& c = in.stack->counters();
  m.counter("tcp_accepted_total", "Handshakes completed by clients", c.accepted);
  m.counter("tcp_connected_total", "Outgoing connections established", c.connected);
  m.counter("tcp_closed_total", "Connections ended", c.closed);
  const char* refused = "Connection attempts refused by reason";
  m.counter("tcp_refused_total", refused, c.refused_connections_max, "reason=\"max_connections\"");
  m.counter("tcp_refused_total", refused, c.refused_half_open_max, "reason=\"max_half_open\"");
  m.counter("tcp_refused_total", refused, c.refused_no_memory, "reason=\"no_memory\"");
  m.counter("tcp_refused_total", refused, c.refused_no_listener, "reason=\"no_service\"");
  m.counter("tcp_refused_total", refused, c.refused_starting, "reason=\"starting\"");
  m.counter("tcp_time_wait_reused_total", "SYNs that took over a TIME_WAIT tuple",
            c.time_wait_reused);
  m.counter("tcp_time_wait_evicted_total", "TIME_WAIT ended early: max_time_wait",
            c.time_wait_evicted);
  m.counter("tcp_resets_total", "RST segments", c.resets_in, "direction=\"in\"");
  m.counter("tcp_resets_total", "RST segments", c.resets_out, "direction=\"out\"");
  m.counter("tcp_retransmits_total", "Segments sent again", c.retransmits);
  m.counter("tcp_recoveries_total", "Losses that selective acknowledgements told of", c.recoveries);
  m.counter("tcp_recovery_visits_total", "Segments that these had the stack look at",
            c.recovery_visits);
  const char* dropped = "Packets dropped by the TCP stack by reason";
  m.counter("packets_dropped_total", dropped, c.dropped_malformed, "reason=\"malformed\"");
  m.counter("packets_dropped_total", dropped, c.dropped_checksum, "reason=\"checksum\"");
  m.counter("packets_dropped_total", dropped, c.dropped_not_tcp, "reason=\"not_tcp\"");
  m.counter("packets_dropped_total", dropped, c.dropped_no_slot, "reason=\"no_slot\"");
  m.counter("packets_dropped_total", dropped, c.dropped_send_queue, "reason=\"send_queue\"");
  m.counter("packets_dropped_total", dropped, c.dropped_refused, "reason=\"refused\"");
  m.counter("packets_dropped_total", dropped, c.dropped_handing_over, "reason=\"handing_over\"");
  fragment_metrics(in.stack->fragments(), dropped, m);
  m.counter("handed_over_total",
            "Packets that went on to another worker, whose flow they are of or about",
            c.handed_over);
  m.counter("path_mtu_lowered_total", "Connections whose segments became smaller for their path",
            c.path_mtu_lowered);
  m.counter("icmp_errors_ignored_total", "ICMP errors that changed nothing", c.icmp_errors_ignored);
  m.counter("unknown_flows_total",
            "Segments sent back: another proxy may know their flow or service", c.unknown_flows);
  m.counter("icmp_echo_replies_total", "Echo requests answered", c.icmp_echo);
  m.counter("flow_lookups_total", "Searches in the table of connections", c.flow_lookups);
  m.counter("flow_probes_total", "Entries that they looked at", c.flow_probes);
  m.gauge("tcp_memory_bytes", "Memory of TCP endpoints and segments", in.stack->heap_bytes_used());
  m.gauge("tcp_memory_bytes_max", "Its bound (tcp_memory_bytes)", in.stack->heap_bytes_max());
}

}  // namespace sanproxy::admin
